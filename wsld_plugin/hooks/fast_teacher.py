"""Run a frozen teacher's networks on private, faster copies of them."""
from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from .undo import random_state_kept

# What a network's code may raise in a form that its author did not think of.
CODE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError,
               NameError, RuntimeError, TypeError, ValueError)
_OF_A_DEVICE = re.compile('(CUDA|cuDNN|HIP|MIOpen).*error|CUBLAS|device-side|'
                          'allocate|out of memory')
Forward = Callable[..., Any]


class FastNetwork:
    """The forward pass of a part of a frozen teacher, made faster.

    A copy runs in training and without gradients, else the original. It is
    made in the first step and used if it gives the original's outputs for
    that batch and an altered one, which are not random. Once weights or modes
    change, but for weights written in place through ``.data``, or outputs in
    float16 are not finite, the original runs for good. To look at float16
    outputs waits for the GPU in each step.
    """

    def __init__(self, distiller: Any, network: nn.Module,
                 dtype: torch.dtype | None, undo: ExitStack) -> None:
        self._distiller, self._network = distiller, network
        self._dtype = dtype
        self._original: Forward = network.forward
        self._run: Forward | None = None
        replace_forward(network, self, undo)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy, or the original where the copy would not do."""
        if not self._distiller.training or torch.is_grad_enabled():
            return self._original(*args, **kwargs)
        state, tensors = _state(self._network)
        if self._run is None:
            # While these live, other weights have other addresses.
            self._state, self._kept = state, [one.detach() for one in tensors]
            self._run = self._prepare((args, kwargs)) or self._original
        elif state != self._state:
            self._give_up('weights or modes have changed')
        outputs = self._run(*args, **kwargs)
        if (self._dtype is torch.float16 and self._run is not self._original
                and not _finite(outputs)):
            self._give_up('outputs are not finite')
            return self._original(*args, **kwargs)
        return outputs

    def _give_up(self, why: str) -> None:
        if self._run is not self._original:
            print_log(f"FastStepHook: teacher's copy given up: {why}.",
                      'current', logging.WARNING)
        self._run = self._original

    def _prepare(self, batch: Any) -> Forward | None:
        """The copy, if there is one, tried without a trace."""
        device = next(self._network.parameters()).device
        said: list[str] = []
        run = None
        with random_state_kept(self._network), torch.autocast(
                device.type, enabled=False):
            try:
                run = self._copied(batch, said)
            except CODE_ERRORS as error:
                said.append(f'not copied: {reason(error)}')
        lost = self._dtype is not None and not said[-1].startswith('in ')
        print_log(f'FastStepHook: teacher {"; ".join(said)}.', 'current',
                  logging.WARNING if lost else logging.INFO)
        return run

    def _copied(self, batch: Any, said: list[str]) -> Forward | None:
        """The copy, with what was asked for as far as that holds."""
        plain = _copy(self._network)
        device, dtype = next(plain.parameters()).device, self._dtype
        # A GPU's TF32 rounds folded weights otherwise.
        rounding = 1e-3 if device.type == 'cpu' else 3e-2
        batches = [batch, map_tensors(lambda one: one.flip(-1), batch)]
        sources = (torch.default_generator, *torch.cuda.default_generators)

        def now() -> list[Any]:
            return [_state(plain)[0],
                    *(one.get_state().tolist() for one in sources)]

        before = now()
        expected, again = (_outputs(plain, batches) for _ in range(2))
        if before != now() or not apart(again, expected) <= rounding:
            raise ValueError('it is random, not finite or changing')

        def attempt(how: str, allowed: float, make: Callable[..., Forward],
                    *args: Any) -> Any:
            off, why = math.inf, ''
            try:
                run = make(*args)
                off = apart(_outputs(run, batches), expected)
                why = f'outputs off by up to {off:.1e} of their spread'
            except CODE_ERRORS as error:
                why = reason(error)
            good = off <= allowed
            said.append(f'{"" if good else "not "}{how}: {why}')
            return run if good else None

        network = attempt('folded', rounding, _folded, plain)
        if dtype is None:
            return network
        return attempt(f'in {str(dtype)[6:]}', 1, _lowered, network or plain,
                       dtype) or network


def replace_forward(module: nn.Module, forward: Forward,
                    undo: ExitStack) -> None:
    """Let a module run something else, until that is undone."""
    # By a function, which deepcopy leaves alone.
    undo.enter_context(
        mock.patch.object(module, 'forward',
                          lambda *args, **kwargs: forward(*args, **kwargs)))


def _state(network: nn.Module) -> tuple[list[Any], list[Tensor]]:
    """What differs if a weight, buffer or mode does, and the former two."""
    tensors = [*network.parameters(), *network.buffers()]
    seen: list[Any] = [(one.data_ptr(), one._version) for one in tensors]
    return [*seen, *(part.training for part in network.modules())], tensors


def _copy(original: nn.Module) -> nn.Module:
    """A copy of a network into which nobody looks."""
    for part in original.modules():
        if part._forward_hooks or part._forward_pre_hooks:
            raise ValueError('a recorder or hook looks into it')
        if part.training and isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ValueError('its BatchNorm is in training mode')
    network = copy.deepcopy(original)
    network.__dict__.pop('forward')
    return network


def _folded(plain: nn.Module) -> nn.Module:
    """A copy with BatchNorm folded into the convolutions before it."""
    from torch.fx.experimental.optimization import fuse
    network = copy.deepcopy(plain)
    for part in network.modules():
        if type(part) is nn.SyncBatchNorm:
            # The same in evaluation, and known to torch.fx.
            part.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        elif isinstance(part, nn.ReLU):
            # mmrazor switches it off. Where it may not be, outputs differ.
            part.inplace = True
        elif isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            # torch asks for it, and to them it means nothing.
            part.eval()
    folded = fuse(network)
    if len([*folded.buffers()]) == len([*network.buffers()]):
        raise ValueError('no BatchNorm follows a convolution of its own')
    return folded


def _lowered(network: nn.Module, dtype: torch.dtype) -> Forward:
    """A network in mixed precision, with outputs as before."""
    weight = next(network.parameters())

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(weight.device.type, dtype=dtype):
            outputs = network(*args, **kwargs)
        return map_tensors(lambda one: one.to(weight.dtype)
                    if one.is_floating_point() else one, outputs)

    return forward


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors of a nested value."""
    return tree_map(
        lambda one: change(one) if isinstance(one, Tensor) else one, value)


def _outputs(run: Forward, batches: list[Any]) -> list[Any]:
    """What comes of batches, and what is left of each of them."""
    copies = [map_tensors(torch.clone, batch) for batch in batches]
    # A call of what torch.fx made would print errors.
    run = getattr(run, 'forward', run)
    return [(run(*args, **kwargs), args, kwargs) for args, kwargs in copies]


def _finite(outputs: Any) -> bool:
    """Whether all numbers are, waiting for the device once."""
    found = [one.isfinite().all() for one in tree_flatten(outputs)[0]
             if isinstance(one, Tensor)]
    return not found or bool(torch.stack(found).all())


def apart(ours: Any, theirs: Any) -> float:
    """Largest difference over standard deviation; NaN if not finite."""
    (mine, kind), (others, other_kind) = map(tree_flatten, (ours, theirs))
    apart = [0. if kind == other_kind else math.inf]
    for one, other in zip(mine, others):
        if not isinstance(other, Tensor):
            apart.append(0. if one == other else math.inf)
        elif one.shape != other.shape:
            apart.append(math.inf)
        elif other.numel():
            spread = other.double().std(unbiased=False).clamp_min(1e-30)
            apart.append(float((one.double() - other).abs().max() / spread))
    # `max` could lose it.
    return math.nan if any(map(math.isnan, apart)) else max(apart)


def reason(error: Exception) -> str:
    """First line of an error of a network's code; a device's is raised."""
    own = not isinstance(error, RuntimeError) or type(error) in (
        RuntimeError, NotImplementedError)
    if not own or _OF_A_DEVICE.search(str(error)):
        raise error
    return (str(error).strip() or repr(error)).splitlines()[0]
