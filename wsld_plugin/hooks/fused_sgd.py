"""Run an SGD that is already built by torch's fused kernel."""
from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn


def fuse_sgd(optimizer: torch.optim.Optimizer, undo: ExitStack) -> str | None:
    """Let an optimizer update all parameters of a group in one kernel.

    The kernel does the same arithmetic in the same order. It walks through
    memory without looking at strides, so a momentum buffer that came from a
    checkpoint is first laid out as its parameter, and an optimizer whose
    gradients lie otherwise goes back to torch's plain loop.

    Args:
        optimizer: Optimizer that is built, and resumed if it will be.
        undo: Gets what puts the optimizer back.

    Returns:
        Why the optimizer is left alone, or None if it is not.
    """
    if type(optimizer) is not torch.optim.SGD:
        return f'{type(optimizer).__name__} is not torch.optim.SGD'
    groups = optimizer.param_groups
    # With dampening the first step differs from one on a buffer of zeros.
    if any(
            group.get('foreach') or group.get('differentiable') or (
                group['momentum'] and group['dampening']) for group in groups):
        return 'foreach, differentiable and dampening exclude the fused SGD'
    kinds = {(parameter.device, parameter.dtype)
             for group in groups for parameter in group['params']}
    for device, dtype in kinds:
        if not _has_fused_sgd(device, dtype):
            return (f'torch {torch.__version__} has no fused SGD for '
                    f'{str(dtype)[6:]} on {device.type}')
    before = [group['fused'] for group in groups]

    def put_back() -> None:
        for group, fused in zip(groups, before):
            group['fused'] = fused

    for group in groups:
        group['fused'] = True
    undo.callback(put_back)
    handle = optimizer.register_step_pre_hook(_lay_out(put_back))
    undo.callback(handle.remove)
    return None


def _has_fused_sgd(device: torch.device, dtype: torch.dtype) -> bool:
    """Take a step and see, for the list of devices differs by release."""
    number = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    number.grad = torch.zeros_like(number)
    try:
        torch.optim.SGD([number], lr=0.1, momentum=0.9, fused=True).step()
    except (TypeError, RuntimeError):
        return False
    return True


def _lay_out(give_up: Callable[[], None]) -> Callable[..., None]:
    """A hook before each step that readies what the kernel walks through.

    Args:
        give_up: Called where a gradient does not lie as its parameter.
    """
    ready: set[Tensor] = set()
    given_up = False

    def before_step(optimizer: torch.optim.Optimizer, *args: Any) -> None:
        nonlocal given_up
        if given_up:
            return
        for group in optimizer.param_groups:
            for parameter in group['params']:
                grad = parameter.grad
                if grad is None or parameter in ready:
                    continue
                if grad.is_sparse or memory_order(grad) != memory_order(
                        parameter):
                    given_up = True
                    give_up()
                    print_log(
                        'FastStepHook: gradients do not lie in memory as '
                        'their parameters do (as with DDP and '
                        'gradient_as_bucket_view=True): SGD is not fused.',
                        logger='current',
                        level=logging.WARNING)
                    return
                if group['momentum']:
                    _lay_out_momentum(optimizer.state[parameter], parameter)
                ready.add(parameter)

    return before_step


def _lay_out_momentum(state: dict[str, Any], parameter: Tensor) -> None:
    buffer = state.get('momentum_buffer')
    if buffer is None:
        # The kernel cannot take some groups' first gradients along with
        # later ones; on zeros the first step comes out the same.
        state['momentum_buffer'] = torch.zeros_like(parameter)
    elif memory_order(buffer) != memory_order(parameter):
        state['momentum_buffer'] = torch.empty_like(parameter).copy_(buffer)


def memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a tensor, but for axes of length 1, where they say nothing.

    Args:
        tensor: Dense tensor of any shape.
    """
    return tuple(
        stride for size, stride in zip(tensor.shape, tensor.stride())
        if size > 1)
