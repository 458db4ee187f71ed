"""Run a frozen teacher's backbone on a private, faster copy of it."""
from __future__ import annotations

import copy
import logging
import math
import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

# What a network's code may raise in a form that its author did not think of.
_CODE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError,
                NameError, RuntimeError, TypeError, ValueError)
_OF_A_DEVICE = re.compile('(CUDA|cuDNN|HIP|MIOpen).*error|CUBLAS|device-side|'
                          'allocate|out of memory')
# Steps that weights must rest before they are copied again.
_REST = 10
Forward = Callable[..., Any]


class FastBackbone:
    """The forward pass of a frozen teacher's backbone, made faster.

    A copy runs in training and without gradients, else the original. It is
    made in the first step and used if it gives the original's outputs for
    that batch and an altered one, which are not random. Weights and modes
    that change later, but for weights written in place through ``.data``, are
    noticed: the original runs until they rest. So it does once outputs in
    float16 are not finite; to look at them waits for the GPU in each step.
    """

    def __init__(self, distiller: Any, dtype: torch.dtype | None,
                 undo: ExitStack) -> None:
        self._distiller, self._dtype = distiller, dtype
        self._backbone: nn.Module = distiller.teacher.backbone
        self._original: Forward = self._backbone.forward
        self._run = self._original
        self._state: Any = None
        self._rested = 0
        # By a function, which deepcopy leaves alone.
        undo.enter_context(
            mock.patch.object(self._backbone, 'forward',
                              lambda *args, **kwargs: self(*args, **kwargs)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy, or the original where the copy would not do."""
        if not self._distiller.training or torch.is_grad_enabled():
            return self._original(*args, **kwargs)
        state, tensors = _state(self._backbone)
        if state == self._state:
            self._rested += 1
        else:
            # At first there is nothing to wait for.
            self._rested = 0 if self._state else _REST
            self._state, self._run = state, self._original
            # While these live, other weights have other addresses.
            self._kept = [one.detach() for one in tensors]
        if self._rested == _REST:
            self._run = self._prepare((args, kwargs)) or self._original
        outputs = self._run(*args, **kwargs)
        if (self._dtype is torch.float16 and self._run is not self._original
                and not math.isfinite(_apart(outputs, outputs))):
            print_log('FastStepHook: teacher not in float16: not finite.',
                      'current', logging.WARNING)
            self._run = self._original
            return self._original(*args, **kwargs)
        return outputs

    def _prepare(self, batch: Any) -> Forward | None:
        """The copy, if there is one, tried without a trace."""
        device = next(self._backbone.parameters()).device
        said: list[str] = []
        run = None
        with ExitStack() as after:
            after.callback(random.setstate, random.getstate())
            after.callback(np.random.set_state, np.random.get_state())
            after.enter_context(
                torch.random.fork_rng([device] * (device.type == 'cuda')))
            after.enter_context(torch.autocast(device.type, enabled=False))
            try:
                run = self._copied(batch, said)
            except _CODE_ERRORS as error:
                said.append(f'not copied: {_reason(error)}')
        lost = self._dtype is not None and not said[-1].startswith('in ')
        print_log(f'FastStepHook: teacher {"; ".join(said)}.', 'current',
                  logging.WARNING if lost else logging.INFO)
        return run

    def _copied(self, batch: Any, said: list[str]) -> Forward | None:
        """The copy, with what was asked for as far as that holds."""
        plain = _copy(self._backbone)
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
        if before != now() or not _apart(again, expected) <= rounding:
            raise ValueError('it is random, not finite or changing')

        def attempt(how: str, allowed: float, make: Callable[..., Forward],
                    *args: Any) -> Any:
            try:
                run = make(*args)
                apart = _apart(_outputs(run, batches), expected)
                why = f'outputs off by up to {apart:.1e} of their spread'
            except _CODE_ERRORS as error:
                apart, why = math.nan, _reason(error)
            good = apart <= allowed
            said.append(f'{"" if good else "not "}{how}: {why}')
            return run if good else None

        network = attempt('folded', rounding, _folded, plain)
        if dtype is None:
            return network
        return attempt(f'in {str(dtype)[6:]}', 1, _lowered, network or plain,
                       dtype) or network


def _state(network: nn.Module) -> tuple[list[Any], list[Tensor]]:
    """What differs if a weight, buffer or mode does, and the former two."""
    tensors = [*network.parameters(), *network.buffers()]
    seen: list[Any] = [(one.data_ptr(), one._version) for one in tensors]
    return [*seen, *(part.training for part in network.modules())], tensors


def _copy(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone into which nobody looks."""
    for part in backbone.modules():
        if part._forward_hooks or part._forward_pre_hooks:
            raise ValueError('a recorder or hook looks into its backbone')
        if part.training and isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ValueError('its BatchNorm is in training mode')
    network = copy.deepcopy(backbone)
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


def _apart(ours: Any, theirs: Any) -> float:
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


def _reason(error: Exception) -> str:
    """First line of an error of a network's code; a device's is raised."""
    own = not isinstance(error, RuntimeError) or type(error) in (
        RuntimeError, NotImplementedError)
    if not own or _OF_A_DEVICE.search(str(error)):
        raise error
    return (str(error).strip() or repr(error)).splitlines()[0]
