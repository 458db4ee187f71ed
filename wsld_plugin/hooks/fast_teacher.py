"""Run a frozen teacher's backbone on a private, faster copy of it."""
from __future__ import annotations

import copy
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# Recorders that read a module's inputs, outputs or parameters. All others
# replace functions, which may be used anywhere in a network.
_MODULE_RECORDERS = {
    'ModuleInputsRecorder',
    'ModuleOutputsRecorder',
    'ParameterRecorder',
}
# Where the classification loss begins after the forward pass of mode
# 'tensor'; named, not imported, for the teacher need not be mmpretrain's.
_PLAIN_LOSSES = {
    'mmpretrain.models.classifiers.image.ImageClassifier.forward',
    'mmpretrain.models.classifiers.image.ImageClassifier.loss',
    'mmpretrain.models.heads.cls_head.ClsHead.loss',
    'mmpretrain.models.heads.cls_head.ClsHead._get_loss',
}
# What torch.compile is known to raise where it does not work.
_COMPILER_ERRORS = (RuntimeError, AssertionError, AttributeError, ImportError,
                    OSError, TypeError, ValueError)

# What a network's code may raise when torch.fx calls it on proxies, or when
# it is run in a form that its author did not think of.
_NETWORK_ERRORS = (ArithmeticError, AssertionError, AttributeError,
                   LookupError, RuntimeError, TypeError, ValueError)

Forward = Callable[..., Any]


def use_channels_last(parameters: Iterable[nn.Parameter],
                      undo: ExitStack | None = None) -> None:
    """Lay the weights of 2-dimensional convolutions out channels last.

    Values, names, shapes and types stay; parameters of other than four
    dimensions are not touched.

    Args:
        parameters: Weights of any networks, changed in place.
        undo: Gets what lays them out as before.
    """
    changed = []
    for parameter in parameters:
        if parameter.dim() == 4 and parameter.is_contiguous():
            parameter.data = parameter.data.contiguous(
                memory_format=torch.channels_last)
            changed.append(parameter)

    def put_back() -> None:
        for parameter in changed:
            parameter.data = parameter.data.contiguous()

    if undo is not None:
        undo.callback(put_back)


def why_watched(distiller: Any) -> str | None:
    """What, if anything, may look at more than modules of a teacher.

    Args:
        distiller: mmrazor's ``SingleTeacherDistill`` or its like.
    """
    inner: Any = getattr(distiller, 'distiller', None)
    if not hasattr(inner, 'teacher_recorders'):
        return f'{type(inner).__name__} has no teacher_recorders'
    for name, recorder in inner.teacher_recorders.recorders.items():
        kind = type(recorder).__name__
        if kind not in _MODULE_RECORDERS:
            return f'recorder {name!r} is a {kind}'
    if inner.deliveries.deliveries:
        return 'there are deliveries'
    return None


def skip_teacher_loss(distiller: Any, undo: ExitStack) -> str | None:
    """Let a frozen teacher compute no loss and no metrics.

    Args:
        distiller: mmrazor's ``SingleTeacherDistill`` or its like.
        undo: Gets what takes this back.

    Returns:
        Why the teacher is left alone, or None if it is not.
    """
    teacher = distiller.teacher
    head = getattr(teacher, 'head', None)
    methods = [
        getattr(type(teacher), 'forward', None),
        getattr(type(teacher), 'loss', None),
        getattr(type(head), 'loss', None),
        getattr(type(head), '_get_loss', None)
    ]
    if {
            f'{method.__module__}.{method.__qualname__}'
            for method in methods if method is not None
    } != _PLAIN_LOSSES:
        return 'its loss is not that of a plain mmpretrain classifier'
    recorders = distiller.distiller.teacher_recorders.recorders
    for name, recorder in recorders.items():
        source = recorder.source
        if f'{source}.'.startswith('head.loss_module.'):
            return f'recorder {name!r} reads {source}'
    loss = teacher.loss

    def outputs_only(inputs: Tensor,
                     data_samples: Any = None) -> dict[str, Tensor]:
        if not distiller.training:
            return loss(inputs, data_samples)
        # Not by call: hooks of the teacher itself run already.
        teacher.forward(inputs, data_samples, mode='tensor')
        return {}

    _replace(teacher, 'loss', outputs_only, undo)
    return None


class FastBackbone:
    """The forward pass of a frozen teacher's backbone, made faster.

    In training and without gradients it runs on a deep copy that it keeps to
    itself; otherwise, as in validation, the original runs. The copy is made
    in the first step, when every module is in the mode that it trains in,
    and its outputs are compared with those of the original on that batch.
    Weights that something changes later are not followed.

    Args:
        distiller: mmrazor's ``SingleTeacherDistill`` or its like.
        fold: Fold BatchNorm into the convolution before it.
        channels_last: Lay out convolutions channels last.
        dtype: Precision of the copy; None leaves it.
        compiled: Compile the copy.
        watched: Why there must be no copy, if there must not.
        undo: Gets what takes this back.
    """

    def __init__(self, distiller: Any, *, fold: bool, channels_last: bool,
                 dtype: torch.dtype | None, compiled: bool,
                 watched: str | None, undo: ExitStack) -> None:
        self._distiller = distiller
        self._backbone: nn.Module = distiller.teacher.backbone
        self._original: Forward = self._backbone.forward
        self._fold = fold
        self._channels_last = channels_last
        self._dtype = dtype
        self._compiled = compiled
        self._watched = watched
        self._undo = undo
        self._run: Forward | None = None
        self.done: list[str] = []
        self.left: list[str] = []
        _replace(self._backbone, 'forward', self, undo)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the copy, or the original where the copy would not do."""
        if not self._distiller.training or torch.is_grad_enabled():
            return self._original(*args, **kwargs)
        if self._run is None:
            self._run = self._prepare(args, kwargs)
        return self._run(*args, **kwargs)

    def _prepare(self, args: tuple, kwargs: dict[str, Any]) -> Forward:
        """Choose, by the first batch, what is run from now on."""
        modules = list(self._backbone.modules())
        norms = [part for part in modules if isinstance(part, _BatchNorm)]
        if self._watched is None and any(
                part._forward_hooks or part._forward_pre_hooks
                for part in modules[1:]):
            self._watched = 'a recorder or hook looks inside the backbone'
        if self._watched is not None:
            return self._in_place(self._watched)
        if any(norm.training for norm in norms):
            return self._in_place('its BatchNorm is in training mode', args,
                                  kwargs)
        wanted = self._dtype is not None or self._compiled
        if not (wanted or (self._fold and norms)):
            return self._in_place('it has no BatchNorm' if self._fold else '')
        expected, _ = self._try(self._original, args, kwargs)
        for fold in [True, False] if self._fold and norms else [False]:
            copied = _folded(self._copy) if fold else self._copy()
            if copied is None:
                continue
            network = copied
            kept = sum(
                isinstance(part, _BatchNorm) for part in network.modules())
            if fold and kept == len(norms):
                self.left.append('teacher not folded: none of its BatchNorms '
                                 'follows a convolution of its own')
                continue
            if self._channels_last:
                use_channels_last(network.parameters())
            try:
                outputs, untouched = self._try(network, args, kwargs)
            except _NETWORK_ERRORS as error:
                # As `view` does on what is not contiguous, or what torch.fx
                # made of an optional argument.
                _warn(f'the copy of the teacher fails: {_first_line(error)}')
                continue
            apart = _apart(outputs, expected)
            allowed = _tolerance(self._backbone)
            if untouched and apart <= allowed:
                break
            _warn(
                f'the {"folded" if fold else "unfolded"} copy of the teacher '
                f'is off by up to {apart:.1e} of the spread of its outputs '
                f'({allowed:.1e} is allowed): it is not used.')
        else:
            self.left.append('teacher: no copy of it gives its outputs')
            if wanted:
                _warn('teacher_dtype and compile_teacher are without effect.')
            return self._original
        how = (f'folded {len(norms) - kept} of {len(norms)} BatchNorms'
               if fold else 'copied')
        self.done.append(
            f'teacher: {how}'
            f'{", channels last" if self._channels_last else ""}, outputs '
            f'off by up to {apart:.1e} of their spread')
        return self._change_numbers(network, expected, args, kwargs)

    def _copy(self) -> nn.Module:
        """A copy of the backbone that records nothing."""
        backbone = self._backbone
        # Known copies: what is replaced must not drag the model along, and
        # what listens to the original must not listen to the copy.
        network = copy.deepcopy(
            backbone, {
                id(self): self,
                id(backbone._forward_hooks): OrderedDict(),
                id(backbone._forward_pre_hooks): OrderedDict(),
            })
        network.__dict__.pop('forward')
        network.requires_grad_(False)
        if not getattr(self._distiller, 'teacher_module_inplace', True):
            # mmrazor switched it off.
            for part in network.modules():
                if isinstance(part, nn.ReLU):
                    part.inplace = True
        return network

    def _change_numbers(self, network: nn.Module, expected: Any, args: tuple,
                        kwargs: dict[str, Any]) -> Forward:
        """The levers that were asked for and change numbers."""
        run: Forward = network
        wrap: Callable[..., Forward] | None = None
        outside = next(self._backbone.parameters()).dtype
        if self._dtype is not None:
            name = str(self._dtype)[6:]
            # A network that makes tensors of its own may mix them with its
            # weights, which autocast allows.
            for how, wrap in (('in', _in_dtype),
                              ('under autocast in', _under_autocast)):
                reduced = network if wrap is _under_autocast else (
                    copy.deepcopy(network).to(self._dtype))
                run = wrap(reduced, self._dtype, outside)
                try:
                    outputs, _ = self._try(run, args, kwargs)
                except _NETWORK_ERRORS as error:
                    why = _first_line(error)
                    continue
                network = reduced
                self.done.append(f'{how} {name} off by up to '
                                 f'{_apart(outputs, expected):.1e}')
                break
            else:
                run, wrap = network, None
                self.left.append(f'teacher not in {name}: {why}')
        if self._compiled:
            compiled = _Compiled(network)
            run = compiled
            if wrap is not None:
                run = wrap(compiled, self._dtype, outside)
            apart = _apart(self._try(run, args, kwargs)[0], expected)
            if compiled.failed:
                self.left.append('teacher not compiled')
            else:
                self.done.append(f'compiled off by up to {apart:.1e}')
        return run

    def _in_place(self,
                  why: str,
                  args: tuple | None = None,
                  kwargs: dict[str, Any] | None = None) -> Forward:
        """No copy: what can be done to the original."""
        if why:
            self.left.append(f'teacher not copied: {why}')
        if self._channels_last:
            use_channels_last(self._backbone.parameters(), self._undo)
            self.done.append('teacher: channels last')
        if self._compiled:
            _warn(f'compile_teacher=True is without effect: {why}.')
        if self._dtype is None:
            return self._original
        if args is None or kwargs is None:
            _warn(f'teacher_dtype is without effect: {why}.')
            return self._original
        # Only a copy may run more than once: statistics move.
        trial = self._copy()
        outside = next(trial.parameters()).dtype
        expected, _ = self._try(trial, args, kwargs)
        run = _under_autocast(trial, self._dtype, outside)
        apart = _apart(self._try(run, args, kwargs)[0], expected)
        self.done.append(f'under autocast in {str(self._dtype)[6:]}, outputs '
                         f'off by up to {apart:.1e} of their spread')
        return _under_autocast(self._original, self._dtype, outside)

    def _try(self, run: Forward, args: tuple,
             kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """Run on a batch without a trace of it.

        Returns:
            The outputs in the weights' precision, and whether the batch came
            out as it went in.
        """
        weight = next(self._backbone.parameters())
        args, kwargs = _map(torch.clone, (args, kwargs))
        before = _map(torch.clone, (args, kwargs))
        devices = [weight.device] if weight.is_cuda else []
        with torch.random.fork_rng(devices), _without_tf32(), torch.autocast(
                weight.device.type, enabled=False):
            outputs = run(*_cast(args, weight.dtype),
                          **_cast(kwargs, weight.dtype))
        return outputs, _apart((args, kwargs), before) == 0


def _folded(copy: Callable[[], nn.Module]) -> nn.Module | None:
    """A copy with BatchNorm folded into convolutions, if that is possible.

    torch follows the calls and so finds the convolution that a BatchNorm
    comes after, in pre-activation networks too. Where the code cannot be
    traced, mmcv goes by the order in which modules were defined; a wrong
    guess of its shows in the outputs.
    """
    from mmcv.cnn import fuse_conv_bn
    from torch.fx.experimental.optimization import fuse
    network: nn.Module = copy()
    for part in network.modules():
        if type(part) is nn.SyncBatchNorm:
            # The same in evaluation, and known to torch.fx.
            part.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        # torch asks for it. To convolutions the mode means nothing; other
        # modules, such as dropped paths, keep the mode that they train in.
        if isinstance(part, (_ConvNd, nn.Linear)):
            part.eval()
    try:
        network = fuse(network, inplace=True)
    except _NETWORK_ERRORS:
        network = copy()
        try:
            fuse_conv_bn(network)
        except (AttributeError, RuntimeError, TypeError) as error:
            _warn(f'the teacher cannot be folded: {_first_line(error)}')
            return None
    return network.requires_grad_(False)


class _Compiled:
    """A network that is compiled, or run as it is where that fails."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._run: Forward = network
        self.failed = True
        if not hasattr(torch, 'compile'):
            self._give_up(f'torch {torch.__version__} has no torch.compile')
            return
        try:
            # Weights become constants; the option is for this network only.
            self._run = torch.compile(network, options={'freezing': True})
            self.failed = False
        except _COMPILER_ERRORS as error:
            self._give_up(error)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.failed:
            try:
                return self._run(*args, **kwargs)
            except _COMPILER_ERRORS as error:
                self._give_up(error)
        return self._network(*args, **kwargs)

    def _give_up(self, why: object) -> None:
        self._run, self.failed = self._network, True
        _warn(f'the teacher runs uncompiled: {_first_line(why)}')


def _in_dtype(run: Forward, dtype: torch.dtype,
              outside: torch.dtype) -> Forward:
    """Run in one precision, whatever is around, and return another."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(_device_type(args, kwargs), enabled=False):
            outputs = run(*_cast(args, dtype), **_cast(kwargs, dtype))
        return _cast(outputs, outside)

    return forward


def _under_autocast(run: Forward, dtype: torch.dtype,
                    outside: torch.dtype) -> Forward:
    """Run in mixed precision and return another."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(_device_type(args, kwargs), dtype=dtype):
            outputs = run(*args, **kwargs)
        return _cast(outputs, outside)

    return forward


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Compare in float32: TF32 rounds folded weights otherwise."""
    places: tuple[Any, ...] = (torch.backends.cudnn,
                               torch.backends.cuda.matmul)
    try:
        before = [place.allow_tf32 for place in places]
    except RuntimeError:
        # Set by torch's newer `fp32_precision`, which forbids the older.
        yield
        return
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before):
            place.allow_tf32 = allowed


def _device_type(args: tuple, kwargs: dict[str, Any]) -> str:
    return next(one for one in (*args, *kwargs.values())
                if isinstance(one, Tensor)).device.type


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors of a nested value."""
    return _map(
        lambda one: one.to(dtype) if one.is_floating_point() else one, value)


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors of a nested value."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(change, one) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_map(change, one) for one in value)
    return value


def _apart(ours: Any, theirs: Any) -> float:
    """Largest difference of nested outputs over the standard deviation."""
    if isinstance(theirs, dict):
        pairs = [(ours[key], one) for key, one in theirs.items()]
    elif isinstance(theirs, (tuple, list)):
        pairs = list(zip(ours, theirs))
    elif isinstance(theirs, Tensor):
        wide = theirs.double()
        spread = wide.std(unbiased=False).clamp_min(1e-30)
        return float((ours.double() - wide).abs().max() / spread)
    else:
        return 0.
    apart = [_apart(one, other) for one, other in pairs]
    # `max` could lose it.
    return math.nan if any(map(math.isnan, apart)) else max(apart, default=0.)


def _tolerance(network: nn.Module) -> float:
    """What rounding may come to: 10,000 steps of the weights' precision."""
    return 1e4 * torch.finfo(next(network.parameters()).dtype).eps


def _replace(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Give an object an attribute of its own until it is undone."""
    own = owner.__dict__
    if name in own:
        undo.callback(own.__setitem__, name, own[name])
    else:
        undo.callback(own.pop, name, None)
    own[name] = value


def _first_line(error: object) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _warn(message: str) -> None:
    print_log(
        f'FastStepHook: {message}', logger='current', level=logging.WARNING)
