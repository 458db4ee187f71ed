"""Run a frozen teacher's backbone on a private, faster copy of it."""
from __future__ import annotations

import copy
import logging
import math
import random
import re
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_flatten, tree_map

# Where the loss of a plain classifier begins; named, not imported, for the
# teacher need not be mmpretrain's.
_CLASSIFIER = 'mmpretrain.models.classifiers.image.ImageClassifier'
_HEAD = 'mmpretrain.models.heads.cls_head.ClsHead'
# What a network's code may raise when torch.fx calls it on proxies, or when
# it is run in a form that its author did not think of.
_CODE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError,
                NameError, RuntimeError, TypeError, ValueError)
_OF_A_DEVICE = re.compile(
    '(CUDA|cuDNN|HIP|MIOpen).*error|CUBLAS|device-side|memory.*allocate|out of'
    ' memory')
# Steps that weights must rest before they are copied again.
_REST = 10
Forward = Callable[..., Any]


def skip_teacher_loss(distiller: Any, undo: ExitStack) -> str | None:
    """Let a frozen teacher compute no loss and no metrics.

    Args:
        distiller: mmrazor's ``SingleTeacherDistill`` or its like.
        undo: Gets what takes this back.

    Returns:
        Why the teacher is left alone, or None if it is not.
    """
    teacher = distiller.teacher
    for owner, name, plain in ((teacher, 'forward', _CLASSIFIER),
                               (teacher, 'loss', _CLASSIFIER),
                               (getattr(teacher, 'head', None), 'loss', _HEAD),
                               (getattr(teacher, 'head', None), '_get_loss',
                                _HEAD)):
        method = getattr(type(owner), name, type)
        if f'{method.__module__}.{method.__qualname__}' != f'{plain}.{name}':
            return 'it is not that of a plain mmpretrain classifier'
    for name, recorder in distiller.distiller.teacher_recorders.recorders.items(
    ):
        if f'{recorder.source}.'.startswith('head.loss_module.'):
            return f'recorder {name!r} reads {recorder.source}'
    loss = teacher.loss

    def outputs_only(inputs: Tensor, data_samples: Any = None) -> Any:
        if not distiller.training:
            return loss(inputs, data_samples)
        # Not by call: hooks of the teacher itself run already.
        teacher.forward(inputs, data_samples, mode='tensor')
        return {}

    undo.enter_context(mock.patch.object(teacher, 'loss', outputs_only))
    return None


class FastBackbone:
    """The forward pass of a frozen teacher's backbone, made faster.

    In training and without gradients a copy runs, otherwise, as in
    validation, the original. It is made in the first step, when all modules
    are in the mode that they train in, and used if it gives the original's
    outputs for that batch and an altered one. A teacher that draws random
    numbers or changes as it runs is not copied. Weights and modes that
    change later, but for weights written in place through ``.data``, are
    noticed before the next step: the original then runs until they rest.

    Args:
        distiller: mmrazor's ``SingleTeacherDistill`` or its like.
        fold: Fold BatchNorm into the convolution before it.
        dtype: Precision of the copy; None leaves it. Outputs in float16 are
            looked at in each step, which waits for the GPU: once they are
            not finite the original runs.
        undo: Gets what takes this back.
    """

    def __init__(self, distiller: Any, fold: bool, dtype: torch.dtype | None,
                 undo: ExitStack) -> None:
        self._distiller, self._fold, self._dtype = distiller, fold, dtype
        self._backbone: nn.Module = distiller.teacher.backbone
        self._original: Forward = self._backbone.forward
        self._run = self._original
        self._state: Any = None
        self._kept: list[Tensor] = []
        self._rested = 0

        # A function, which deepcopy leaves alone.
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        undo.enter_context(
            mock.patch.object(self._backbone, 'forward', forward))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy, or the original where the copy would not do."""
        if not self._distiller.training or torch.is_grad_enabled():
            return self._original(*args, **kwargs)
        state = _state(self._backbone)
        if state == self._state:
            self._rested += 1
        else:
            # At first there is nothing to wait for.
            self._rested = 0 if self._state else _REST
            self._state, self._run = state, self._original
            # While these live, other weights have other addresses.
            self._kept = [one.detach() for one in _tensors(self._backbone)]
        if self._rested == _REST:
            self._run = self._prepare((args, kwargs)) or self._original
        outputs = self._run(*args, **kwargs)
        if (self._dtype is torch.float16 and self._run is not self._original
                and not math.isfinite(_apart(outputs, outputs))):
            _say(['not in float16: outputs are not finite'], self._dtype)
            self._run = self._original
            return self._original(*args, **kwargs)
        return outputs

    def _prepare(self, batch: Any) -> Forward | None:
        """The copy, with what was asked for as far as that holds."""
        said: list[str] = []
        run = None
        device = next(self._backbone.parameters()).device
        python, array = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(
                [device] if device.type == 'cuda' else []), torch.autocast(
                    device.type, enabled=False):
                run = self._copied(batch, device, said)
        except _CODE_ERRORS as error:
            said.append(f'not copied: {_reason(error)}')
        finally:
            random.setstate(python)
            np.random.set_state(array)
        _say(said, self._dtype)
        return run

    def _copied(self, batch: Any, device: torch.device,
                said: list[str]) -> Forward | None:
        plain = _copy(self._backbone)
        # A GPU's TF32 rounds folded weights otherwise. To fold wrongly shows
        # in tenths.
        rounding = 1e-3 if device.type == 'cpu' else 3e-2
        batches = [batch, tree_map(_altered, batch)]
        expected = _expected(plain, batches, rounding)

        def attempt(how: str, make: Callable[[], Forward],
                    allowed: float) -> Forward | None:
            try:
                run = make()
                apart = _apart(_outputs(run, batches), expected)
            except _CODE_ERRORS as error:
                said.append(f'not {how}: {_reason(error)}')
                return None
            good = apart <= allowed
            said.append(f'{"" if good else "not "}{how}: outputs off by up to '
                        f'{apart:.1e} of their spread')
            return run if good else None

        network: Any = None
        if self._fold:
            network = attempt('folded', lambda: _folded(plain), rounding)
        dtype = self._dtype
        if dtype is None:
            return network
        return attempt(f'in {str(dtype)[6:]}',
                       lambda: _in_dtype(network or plain, dtype), 1) or network


def _tensors(network: nn.Module) -> chain[Tensor]:
    return chain(network.parameters(), network.buffers())


def _state(network: nn.Module) -> tuple[list[Any], list[bool]]:
    """What differs if a weight, buffer or mode of a network does."""
    return ([(one.data_ptr(), 0 if one.is_inference() else one._version)
             for one in _tensors(network)],
            [part.training for part in network.modules()])


def _copy(backbone: nn.Module) -> nn.Module:
    """A copy of the backbone to which nobody listens."""
    parts = list(backbone.modules())
    if any(one._forward_hooks or one._forward_pre_hooks for one in parts[1:]):
        raise ValueError('a recorder or hook looks inside the backbone')
    if any(isinstance(one, _BatchNorm) and one.training for one in parts):
        raise ValueError('its BatchNorm is in training mode')
    unheard: dict[int, Any] = {
        id(backbone._forward_hooks): OrderedDict(),
        id(backbone._forward_pre_hooks): OrderedDict()
    }
    network = copy.deepcopy(backbone, unheard)
    network.__dict__.pop('forward')
    return network.requires_grad_(False)


def _folded(plain: nn.Module) -> nn.Module:
    """A copy with BatchNorm folded into the convolutions before it."""
    from torch.fx.experimental.optimization import fuse
    network = copy.deepcopy(plain)
    for part in network.modules():
        if type(part) is nn.SyncBatchNorm:
            # The same in evaluation, and known to torch.fx.
            part.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        elif isinstance(part, (_ConvNd, nn.Linear)):
            # torch asks for it, and to them it means nothing.
            part.eval()
        elif isinstance(part, nn.ReLU):
            # mmrazor switches it off. Where it may not be, outputs differ.
            part.inplace = True
    folded = fuse(network)
    norms = [
        sum(isinstance(part, _BatchNorm) for part in one.modules())
        for one in (network, folded)
    ]
    if norms[0] == norms[1]:
        raise ValueError('no BatchNorm follows a convolution of its own')
    return folded.requires_grad_(False)


def _in_dtype(network: nn.Module, dtype: torch.dtype) -> Forward:
    """A copy in one precision, whatever is around, with outputs as before."""
    lowered = copy.deepcopy(network).to(dtype)
    weight = next(network.parameters())

    def cast(value: Any, dtype: torch.dtype) -> Any:
        return tree_map(
            lambda one: one.to(dtype)
            if isinstance(one, Tensor) and one.is_floating_point() else one,
            value)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(weight.device.type, enabled=False):
            outputs = lowered(*cast(args, dtype), **cast(kwargs, dtype))
        return cast(outputs, weight.dtype)

    return forward


def _altered(value: Any) -> Any:
    """Another input of the same kind."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    value = value.flip(0)
    return value.roll(1, -1) / 2 if value.is_floating_point() else value


def _outputs(run: Forward, batches: list[Any]) -> list[Any]:
    """What comes of batches, and what is left of each of them."""
    outputs = []
    for batch in batches:
        args, kwargs = tree_map(
            lambda one: one.clone() if isinstance(one, Tensor) else one, batch)
        outputs.append((run(*args, **kwargs), args, kwargs))
    return outputs


def _expected(plain: nn.Module, batches: list[Any],
              rounding: float) -> list[Any]:
    """Outputs of the original, if they are the same at every call."""
    before = _state(plain), _drawn()
    outputs, again = _outputs(plain, batches), _outputs(plain, batches)
    if before[1] != _drawn() or not _apart(again, outputs) <= rounding:
        raise ValueError('its outputs are random or not finite')
    if before[0] != _state(plain):
        raise ValueError('its weights or buffers change as it runs')
    return outputs


def _drawn() -> list[Any]:
    """What differs if random numbers were drawn from torch meanwhile."""
    cuda = torch.cuda.is_initialized()
    return [torch.get_rng_state().tolist(),
            torch.cuda.get_rng_state().tolist() if cuda else None]


def _apart(ours: Any, theirs: Any) -> float:
    """Largest difference of nested outputs over the standard deviation.

    Infinite where they are not alike, NaN where theirs are not finite.
    """
    mine, kind = tree_flatten(ours)
    others, other_kind = tree_flatten(theirs)
    apart = [0. if kind == other_kind else math.inf]
    for one, other in zip(mine, others):
        if not isinstance(other, Tensor):
            apart.append(0. if one == other else math.inf)
        elif one.shape != other.shape:
            apart.append(math.inf)
        elif other.numel():
            wide = other.double()
            spread = wide.std(unbiased=False).clamp_min(1e-30)
            apart.append(float((one.double() - wide).abs().max() / spread))
    # `max` could lose it.
    return math.nan if any(map(math.isnan, apart)) else max(apart)


def _reason(error: Exception) -> str:
    """First line of an error of a network's code; a device's is raised."""
    if isinstance(error, RuntimeError) and (
            type(error) not in (RuntimeError, NotImplementedError)
            or _OF_A_DEVICE.search(str(error))):
        raise error
    return (str(error).strip() or repr(error)).splitlines()[0]


def _say(said: list[str], dtype: torch.dtype | None) -> None:
    """Log what became of a copy; loudly if it is not in a wanted precision."""
    lost = dtype is not None and not said[-1].startswith('in ')
    print_log(
        f'FastStepHook: teacher {"; ".join(said)}'
        f'{". teacher_dtype is without effect" if lost else ""}.',
        logger='current',
        level=logging.WARNING if lost else logging.INFO)
