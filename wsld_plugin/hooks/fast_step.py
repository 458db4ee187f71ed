"""Make the step of a distillation faster without a change to its model."""
from __future__ import annotations

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

from .channels_last import use_channels_last, why_layout_stays
from .fast_teacher import FastBackbone, skip_teacher_loss
from .teachers import distillers

_DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}
# Recorders that read a module's inputs, outputs or parameters. All others
# replace functions, which may be used anywhere in a network.
_MODULE_RECORDERS = {
    'ModuleInputsRecorder', 'ModuleOutputsRecorder', 'ParameterRecorder'
}


@HOOKS.register_module()
class FastStepHook(Hook):
    """Faster training steps for mmrazor's unchanged distillers.

    The first three levers keep the numbers but for rounding, in the precision
    that one trains in, and are on. The last changes the teacher's outputs, by
    as much as the log says in the first step. A lever that does not apply is
    left out, and the log says why. Checkpoints, resuming and validation are
    as without this hook; after the training, or if it fails, the model and
    the optimizer are as before.

    The student's precision is mmengine's ``AmpOptimWrapper`` (or ``--amp``),
    which covers the teacher too. For bfloat16 throughout::

        optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16')
        custom_hooks = [dict(type='FastStepHook', teacher_dtype='bfloat16')]

    Args:
        channels_last: Lay out 2-dimensional convolutions channels last. Code
            that calls ``view`` on feature maps, as some feature losses and
            mmpretrain's VGG and AlexNet do, needs False.
        fold_teacher: Run a frozen teacher on a copy of its backbone with
            BatchNorm folded into the convolutions. It must be in evaluation
            mode (``teacher_norm_eval=True``) and without randomness
            (``FrozenTeacherHook``).
        teacher_outputs_only: Compute no loss and no metrics for a frozen
            teacher, where nothing reads them.
        teacher_dtype: Precision of a frozen teacher's backbone, 'bfloat16'
            or 'float16' (GPU); its head and the loss get float32.

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
                 teacher_dtype: str | None = None) -> None:
        if teacher_dtype is not None and teacher_dtype not in _DTYPES:
            raise ValueError(f'teacher_dtype is {teacher_dtype!r}, expected '
                             f'None or one of {[*_DTYPES]}')
        self.channels_last = channels_last
        self.fold_teacher = fold_teacher
        self.teacher_outputs_only = teacher_outputs_only
        self.teacher_dtype = _DTYPES.get(teacher_dtype or '')
        self._undo = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Take everything back even if the training fails.

        Raises:
            RuntimeError: In training, if a network cannot run channels last.
        """
        loop = getattr(runner, '_train_loop', None)
        if not isinstance(loop, BaseLoop):
            return
        run = loop.run

        def run_and_take_back() -> Any:
            try:
                return run()
            except RuntimeError as error:
                if self.channels_last and 'view size is not' in str(error):
                    raise RuntimeError(
                        "code that calls 'view' on a feature map cannot run "
                        'channels last: write dict(type="FastStepHook", '
                        'channels_last=False)') from error
                raise
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
        model = runner.model
        said = []
        why = why_layout_stays(model)
        if why is None and self.channels_last:
            use_channels_last(model, _optimizers(runner), self._undo)
            why = 'channels last'
        said.append(why or '')
        if not is_model_wrapper(model) or isinstance(model,
                                                     DistributedDataParallel):
            said += [
                self._speed_up(distiller, bool(runner.cfg.get('compile')))
                for distiller in distillers(model).values()
                if not distiller.teacher_trainable
            ]
        runner.logger.info('FastStepHook: %s.',
                           '; '.join(filter(None, said)) or 'nothing done')

    def after_train(self, runner: Runner) -> None:
        """Take everything back."""
        self._undo.close()

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict[str, Any]) -> None:
        """Let the file be as without this hook."""
        state = checkpoint.get('optimizer', {})
        for one in [state] if 'param_groups' in state else state.values():
            one['state'] = {
                key: _contiguous(value)
                for key, value in one['state'].items()
            }
        for name in ('state_dict', 'ema_state_dict'):
            if name in checkpoint:
                checkpoint[name].update(_contiguous(checkpoint[name]))

    def _speed_up(self, distiller: Any, compiled: bool) -> str:
        """Pull the levers on a frozen teacher, and say which."""
        watched = 'cfg.compile compiles it' if compiled else _why_watched(
            distiller)
        if watched is not None:
            return f'teacher left alone: {watched}'
        said = ''
        if self.teacher_outputs_only:
            why = skip_teacher_loss(distiller, self._undo)
            said = ('teacher: no loss computed' if why is None else
                    f"teacher's loss computed: {why}")
        weight = next(
            getattr(distiller.teacher, 'backbone', nn.Module()).parameters(),
            None)
        if weight is None:
            return f'{said}; teacher: it has no backbone with weights'
        if (self.teacher_dtype is torch.float16
                and weight.device.type == 'cpu'):
            raise ValueError(
                "teacher_dtype is 'float16', but the teacher is on the CPU, "
                "where torch computes it slowly if at all: use 'bfloat16'")
        if self.fold_teacher or self.teacher_dtype:
            FastBackbone(distiller, self.fold_teacher, self.teacher_dtype,
                         self._undo)
        return said


def _why_watched(distiller: Any) -> str | None:
    """What, if anything, may look at more than modules of a teacher."""
    inner: Any = getattr(distiller, 'distiller', None)
    if not hasattr(inner, 'teacher_recorders'):
        return f'{type(inner).__name__} has no teacher_recorders'
    for name, recorder in inner.teacher_recorders.recorders.items():
        if type(recorder).__name__ not in _MODULE_RECORDERS:
            return f'recorder {name!r} is a {type(recorder).__name__}'
    return 'there are deliveries' if inner.deliveries.deliveries else None


def _optimizers(runner: Runner) -> list[torch.optim.Optimizer]:
    wrapper = runner.optim_wrapper
    several = isinstance(wrapper, OptimWrapperDict)
    return [
        one.optimizer for one in (wrapper.values() if several else [wrapper])
    ]


def _contiguous(state: dict[Any, Any]) -> dict[Any, Any]:
    return {
        key: value.contiguous() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
