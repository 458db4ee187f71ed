"""Make the step of a distillation faster without a change to its model."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from . import fast_teacher
from .fast_teacher import map_tensors
from .teachers import distillers
from .undo import random_state_kept, train_within

# All other recorders replace functions, which networks may use anywhere.
_MODULE_RECORDERS = ('ModuleInputsRecorder', 'ModuleOutputsRecorder',
                     'ParameterRecorder')
# What DDP remembers of its first step, as before that.
_UNUSED = dict(_static_graph_delay_allreduce_enqueued=False, num_iterations=0)


@HOOKS.register_module()
class FastStepHook(Hook):
    """Faster training steps for mmrazor's unchanged distillers.

    Convolutions are laid out channels last. A frozen teacher runs on a copy
    of its backbone with BatchNorm folded into the convolutions, if that is in
    evaluation mode (``teacher_norm_eval=True``) and nothing in it is random
    (``FrozenTeacherHook``), and computes no loss that nobody records. What
    does not apply is left out, and the log says why. Checkpoints, resuming
    and validation are as without this hook; after the training, or if it
    fails, the model and the optimizer are as before.

    Args:
        channels_last: Code that calls ``view`` on feature maps, as some
            feature losses and mmpretrain's VGG and AlexNet do, needs False.
        teacher_dtype: Mixed precision of a frozen teacher's backbone,
            'bfloat16' or 'float16' (GPU). It changes the outputs by as much
            as the log says. ``AmpOptimWrapper`` sets that of all else.

    Raises:
        ValueError: If ``teacher_dtype`` is another.
    """

    # After ValidateTeacherHook, which then measures the original; before
    # the hooks that write checkpoints.
    priority = 'BELOW_NORMAL'

    def __init__(self,
                 channels_last: bool = True,
                 teacher_dtype: str | None = None) -> None:
        if teacher_dtype not in (None, 'bfloat16', 'float16'):
            raise ValueError(f'teacher_dtype is {teacher_dtype!r}, expected '
                             "None, 'bfloat16' or 'float16'")
        self.channels_last = channels_last
        self.teacher_dtype = getattr(torch, teacher_dtype or '', None)
        self._undo = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Take everything back when the training ends or fails."""
        train_within(runner, self._undo)
        if self.channels_last:
            self._undo.enter_context(_view_explained())

    def before_train(self, runner: Runner) -> None:
        """Lay out the model and speed up its frozen teachers."""
        said, model, wrapper = [], runner.model, runner.optim_wrapper
        if is_model_wrapper(model) and not isinstance(model,
                                                      DistributedDataParallel):
            runner.logger.info('FastStepHook does nothing: %s has the '
                               'parameters.', type(model).__name__)
            return
        if self.channels_last:
            wrappers = getattr(wrapper, 'optim_wrappers', {'': wrapper})
            optimizers = [one.optimizer for one in wrappers.values()]
            said.append(_use_channels_last(model, optimizers, self._undo))
        said += [
            self._speed_up(distiller, runner.cfg)
            for distiller in distillers(model).values()
            if not distiller.teacher_trainable
        ]
        runner.logger.info('FastStepHook: %s.', '; '.join(said))

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict[str, Any]) -> None:
        """Let the file be as without this hook."""
        for name in ('state_dict', 'ema_state_dict', 'optimizer'):
            part = checkpoint.get(name, {})
            part.update(map_tensors(Tensor.contiguous, dict(part)))

    def _speed_up(self, distiller: Any, cfg: Any) -> str:
        """Speed a frozen teacher up, and say if nothing comes of it."""
        if cfg.get('compile'):
            return 'teacher left alone: cfg.compile compiles it'
        inner: Any = getattr(distiller, 'distiller', None)
        recorders = getattr(inner, 'teacher_recorders', None)
        if recorders is None or inner.deliveries.deliveries or any(
                type(one).__name__ not in _MODULE_RECORDERS
                for one in recorders.recorders.values()):
            return 'teacher left alone: not only its modules are recorded'
        backbone: Any = getattr(distiller.teacher, 'backbone', None)
        if isinstance(backbone, nn.Module) and [*backbone.parameters()]:
            fast_teacher.FastNetwork(distiller, backbone, self.teacher_dtype,
                                     self._undo)
        _skip_loss(distiller, [*recorders.recorders.values()], self._undo)
        return 'teacher tried in the first step'


@contextmanager
def _view_explained() -> Iterator[None]:
    """Tell who needs it which switch to turn."""
    try:
        yield
    except RuntimeError as error:
        if 'view size is not' not in str(error):
            raise
        raise RuntimeError(
            "'view' on feature maps does not go with channels last: write "
            "dict(type='FastStepHook', channels_last=False)") from error


def _skip_loss(distiller: Any, recorders: list[Any], undo: ExitStack) -> None:
    """Let a frozen teacher compute no loss that makes no difference.

    In the first step it runs for the loss and once more for its outputs
    alone, mmengine's ``mode='tensor'``. If all recorders get the same, it
    runs for these from then on.
    """
    teacher = distiller.teacher
    original = teacher.forward

    def why_needed(*args: Any, **kwargs: Any) -> str:
        if any(part.training for part in teacher.modules()
               if isinstance(part, _BatchNorm)):
            return 'its BatchNorm is in training mode'
        recorded = [one.data_buffer for one in recorders]
        try:
            for one in recorders:
                one.reset_data_buffer()
            with random_state_kept(teacher):
                original(*args, mode='tensor', **kwargs)
            again = [one.data_buffer for one in recorders]
            same = fast_teacher.apart(again, recorded) < 1e-5
            return '' if same else 'recorders get something else without it'
        except fast_teacher.CODE_ERRORS as error:
            return fast_teacher.reason(error)
        finally:
            for one, data in zip(recorders, recorded):
                one._data_buffer = data

    needed: bool | None = None

    def forward(*args: Any, mode: str = 'tensor', **kwargs: Any) -> Any:
        nonlocal needed
        if mode != 'loss' or not distiller.training or needed:
            return original(*args, mode=mode, **kwargs)
        if needed is None:
            original(*args, mode=mode, **kwargs)
            why = why_needed(*args, **kwargs)
            needed = bool(why)
            print_log("FastStepHook: teacher's loss " +
                      (f'computed: {why}.' if why else 'not computed.'),
                      'current')
        else:
            original(*args, mode='tensor', **kwargs)
        return {}

    fast_teacher.replace_forward(teacher, forward, undo)


def _use_channels_last(model: nn.Module,
                       optimizers: list[torch.optim.Optimizer],
                       undo: ExitStack) -> str:
    """Lay the weights of 2-dimensional convolutions out channels last.

    So is what optimizers keep for them, for fused ones take no note of
    strides. DDP gets its reduction anew, which would else copy gradients in
    the order that it met first: wrong in every step with
    ``find_unused_parameters``, without in the first. Says what was done.
    """
    if isinstance(model, DistributedDataParallel) and (
            'reducer' not in vars(model)
            or model._get_ddp_logging_data().get('comm_hook')
            or model.process_group != torch.distributed.group.WORLD):
        return ('not channels last: DDP has parts, a communication hook or a '
                'process group of its own')
    # Two that share their memory go on doing so.
    where = Counter(one.data_ptr() for one in model.parameters())
    weights = [
        one for one in model.parameters()
        if one.dim() == 4 and one.is_contiguous() and where[one.data_ptr()] < 2
    ]
    undo.callback(_lay_out, model, weights, optimizers)
    _lay_out(model, weights, optimizers, torch.channels_last)
    return 'channels last'


def _lay_out(model: nn.Module, weights: list[nn.Parameter],
             optimizers: list[torch.optim.Optimizer],
             layout: torch.memory_format = torch.contiguous_format) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=layout)
        if weight.grad is not None:
            weight.grad = weight.grad.contiguous(memory_format=layout)
        for optimizer in optimizers:
            state: dict[str, Any] = optimizer.state.get(weight, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[key] = value.contiguous(memory_format=layout)
    if isinstance(model, DistributedDataParallel):
        # As after unpickling. It needs no word from the other processes, so
        # that it may happen in one that has failed.
        model.__setstate__({
            key: _UNUSED.get(key, value)
            for key, value in model.__getstate__().items()
        })
