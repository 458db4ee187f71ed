"""Make the step of a distillation faster without a change to its model."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .fast_teacher import (
    FastBackbone,
    skip_teacher_loss,
    use_channels_last,
    why_watched,
)
from .fused_sgd import fuse_sgd
from .host_memory import keep_freed_memory
from .teachers import distillers

_DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


@HOOKS.register_module()
class FastStepHook(Hook):
    """Faster training steps for mmrazor's unchanged distillers.

    The first five levers keep the numbers but for rounding, in the precision
    that one trains in, and are on. The last two change the teacher's
    outputs, by as much as the log says after the first step. A lever that
    does not apply is left out, and the log says why. Checkpoints, resuming
    and validation, ``ValidateTeacherHook``'s too, are as without this hook;
    after the training, or if it fails, the model and the optimizer are as
    before.

    The student's precision is mmengine's ``AmpOptimWrapper`` (or ``--amp``),
    which covers the teacher too. For bfloat16 throughout, without a loss
    scale to tune::

        optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16')
        custom_hooks = [dict(type='FastStepHook', teacher_dtype='bfloat16')]

    Where the data loader pins memory, batches are copied to the GPU while
    the host goes on.

    Args:
        channels_last: Lay out 2-dimensional convolutions channels last. Code
            that calls ``view`` on feature maps, as some feature losses and
            mmpretrain's VGG and AlexNet do, needs False.
        fold_teacher: Run a frozen teacher on a copy of its backbone with
            BatchNorm folded into the convolutions. It must be in evaluation
            mode (``teacher_norm_eval=True``).
        teacher_outputs_only: Compute no loss and no metrics for a frozen
            teacher, where nothing reads them.
        fused_optimizer: Let ``torch.optim.SGD`` update all parameters in one
            kernel; on the CPU not together with ``channels_last``.
        keep_memory: On the CPU, let the C library (glibc) keep freed memory
            for the next tensors instead of asking the system for cleared
            pages at many a layer. The process stays about as large as at its
            peak.
        teacher_dtype: Precision of a frozen teacher's backbone, 'bfloat16'
            or 'float16' (GPU); its head and the loss get float32.
        compile_teacher: Compile the copy of a frozen teacher's backbone,
            which takes up to some minutes in the first step.

    Raises:
        ValueError: If ``teacher_dtype`` is another.
    """

    # After ValidateTeacherHook, which then measures the original; before
    # the hooks that write checkpoints.
    priority = 'BELOW_NORMAL'

    def __init__(self,
                 channels_last: bool = True,
                 fold_teacher: bool = True,
                 teacher_outputs_only: bool = True,
                 fused_optimizer: bool = True,
                 keep_memory: bool = True,
                 teacher_dtype: str | None = None,
                 compile_teacher: bool = False) -> None:
        if teacher_dtype is not None and teacher_dtype not in _DTYPES:
            raise ValueError(f'teacher_dtype is {teacher_dtype!r}, expected '
                             f'None or one of {[*_DTYPES]}')
        self.channels_last = channels_last
        self.fold_teacher = fold_teacher
        self.teacher_outputs_only = teacher_outputs_only
        self.fused_optimizer = fused_optimizer
        self.keep_memory = keep_memory
        self.teacher_dtype = _DTYPES.get(teacher_dtype or '')
        self.compile_teacher = compile_teacher
        self._undo = ExitStack()
        self._done: list[str] = []
        self._left: list[str] = []
        self._teachers: list[FastBackbone] = []
        self._unfused: list[list[Any]] = []

    def before_run(self, runner: Runner) -> None:
        """Take everything back even if the training fails."""
        loop = getattr(runner, '_train_loop', None)
        if not isinstance(loop, BaseLoop):
            return
        run = loop.run

        def run_and_take_back() -> Any:
            try:
                return run()
            finally:
                loop.__dict__.pop('run', None)
                self._undo.close()

        loop.__dict__['run'] = run_and_take_back

    def before_train(self, runner: Runner) -> None:
        """Pull the levers.

        Raises:
            ValueError: If the teacher is to run in float16 on the CPU.
        """
        self._undo.close()
        self._done, self._left, self._teachers = [], [], []
        model = runner.model
        if is_model_wrapper(model):
            if not isinstance(model, DistributedDataParallel):
                self._left = [f'{type(model).__name__} arranges parameters '
                              'itself']
                return
            model = model.module
        frozen = [
            distiller for distiller in distillers(model).values()
            if not distiller.teacher_trainable
        ]
        if self.channels_last:
            use_channels_last(
                _without(model, [one.teacher for one in frozen]), self._undo)
            self._done.append('student: channels last')
        for distiller in frozen:
            self._speed_up(distiller, bool(runner.cfg.get('compile')))
        optimizers = _optimizers(runner)
        self._unfused = [[group.get('fused') for group in one.param_groups]
                         for one in optimizers]
        for optimizer in optimizers if self.fused_optimizer else []:
            why = _why_not_worth_fusing(optimizer) or fuse_sgd(
                optimizer, self._undo)
            if why is None:
                self._done.append('SGD: fused')
            else:
                self._left.append(f'optimizer: {why}')
        if self.keep_memory and all(
                parameter.device.type == 'cpu'
                for parameter in model.parameters()):
            why = keep_freed_memory(self._undo)
            if why is None:
                self._done.append('freed memory kept')
            else:
                self._left.append(f'freed memory: {why}')
        preprocessor: Any = getattr(model, 'data_preprocessor', None)
        if (getattr(preprocessor, '_non_blocking', None) is False
                and preprocessor.device.type == 'cuda'
                and runner.train_dataloader.pin_memory):
            preprocessor._non_blocking = True
            self._undo.callback(setattr, preprocessor, '_non_blocking', False)
            self._done.append('batches copied beside the computation')

    def after_train_iter(self, runner: Runner, *args: Any,
                         **kwargs: Any) -> None:
        """Say after the first step what was done."""
        for teacher in self._teachers:
            self._done += teacher.done
            self._left += teacher.left
        if self._done or self._left:
            runner.logger.info(
                'FastStepHook: %s%s', '; '.join(self._done) or 'nothing done',
                f'. Left alone: {"; ".join(self._left)}.'
                if self._left else '.')
        self._done, self._left, self._teachers = [], [], []

    def after_train(self, runner: Runner) -> None:
        """Take everything back."""
        self._undo.close()

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict[str, Any]) -> None:
        """Let the file be as without this hook."""
        for state, before in zip(
                _optimizer_states(checkpoint.get('optimizer', {})),
                self._unfused):
            for group, fused in zip(state['param_groups'], before):
                if 'fused' in group:
                    group['fused'] = fused
            state['state'] = {
                key: _contiguous(value)
                for key, value in state['state'].items()
            }
        for name in ('state_dict', 'ema_state_dict'):
            if name in checkpoint:
                checkpoint[name].update(_contiguous(checkpoint[name]))

    def _speed_up(self, distiller: Any, step_compiled: bool) -> None:
        """The levers on a frozen teacher."""
        watched = why_watched(distiller)
        if self.teacher_outputs_only:
            why = watched or skip_teacher_loss(distiller, self._undo)
            if why is None:
                self._done.append('teacher: no loss computed')
            else:
                self._left.append(f"teacher's loss computed: {why}")
        backbone: Any = getattr(distiller.teacher, 'backbone', None)
        weight = (
            next(backbone.parameters(), None)
            if isinstance(backbone, nn.Module) else None)
        if weight is None:
            self._left.append('teacher: it has no backbone with weights')
            return
        if (self.teacher_dtype is torch.float16
                and weight.device.type == 'cpu'):
            raise ValueError(
                "teacher_dtype is 'float16', but the teacher is on the CPU, "
                "where torch computes it slowly if at all: use 'bfloat16'")
        if step_compiled:
            # Compilers do not follow what is replaced on an object.
            if self.channels_last:
                use_channels_last(backbone.parameters(), self._undo)
            self._left.append('teacher: cfg.compile compiles the whole step')
            return
        if not (self.channels_last or self.fold_teacher or self.teacher_dtype
                or self.compile_teacher):
            return
        self._teachers.append(
            FastBackbone(
                distiller,
                fold=self.fold_teacher,
                channels_last=self.channels_last,
                dtype=self.teacher_dtype,
                compiled=self.compile_teacher,
                watched=watched,
                undo=self._undo))


def _optimizers(runner: Runner) -> list[torch.optim.Optimizer]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return [one.optimizer for one in wrapper.values()]
    return [wrapper.optimizer]


def _why_not_worth_fusing(optimizer: torch.optim.Optimizer) -> str | None:
    if any(parameter.device.type == 'cpu' and not parameter.is_contiguous()
           for group in optimizer.param_groups
           for parameter in group['params']):
        return ("the CPU's fused SGD copies gradients that are channels "
                'last, which costs more than it saves')
    return None


def _without(model: nn.Module,
             teachers: list[nn.Module]) -> Iterator[nn.Parameter]:
    """Parameters of a model that are in none of the teachers."""
    left_out = {
        parameter
        for teacher in teachers for parameter in teacher.parameters()
    }
    for parameter in model.parameters():
        if parameter not in left_out:
            yield parameter


def _optimizer_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """State of each optimizer in what an optimizer wrapper saves."""
    return [state] if 'param_groups' in state else list(state.values())


def _contiguous(state: dict[Any, Any]) -> dict[Any, Any]:
    return {
        key: value.contiguous() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
