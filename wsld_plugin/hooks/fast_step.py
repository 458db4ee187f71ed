"""Make the step of a distillation faster without a change to its model."""
from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from .channels_last import use_channels_last
from .fast_teacher import FastBackbone
from .teachers import distillers

# All other recorders replace functions, which networks may use anywhere.
_MODULE_RECORDERS = {
    'ModuleInputsRecorder', 'ModuleOutputsRecorder', 'ParameterRecorder'
}
# Named, not imported, for the teacher need not be mmpretrain's.
_PLAIN_LOSSES = [
    'mmpretrain.models.classifiers.image.ImageClassifier.loss',
    'mmpretrain.models.heads.cls_head.ClsHead.loss',
    'mmpretrain.models.heads.cls_head.ClsHead._get_loss',
]


@HOOKS.register_module()
class FastStepHook(Hook):
    """Faster training steps for mmrazor's unchanged distillers.

    Convolutions are laid out channels last. A frozen teacher runs on a copy
    of its backbone with BatchNorm folded into the convolutions, if that is in
    evaluation mode (``teacher_norm_eval=True``) and nothing in it is random
    (``FrozenTeacherHook``), and computes no loss that nobody reads. What does
    not apply is left out, and the log says why. Checkpoints, resuming and
    validation are as without this hook; after the training, or if it fails,
    the model and the optimizer are as before.

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
                        "a network that calls 'view' on feature maps cannot "
                        "run channels last: write dict(type='FastStepHook', "
                        'channels_last=False)') from error
                raise
            finally:
                loop.__dict__.pop('run', None)
                self._undo.close()

        loop.__dict__['run'] = run_and_take_back

    def before_train(self, runner: Runner) -> None:
        """Lay out the model and speed up its frozen teachers."""
        model, wrapper = runner.model, runner.optim_wrapper
        said = []
        if is_model_wrapper(model) and not isinstance(model,
                                                      DistributedDataParallel):
            said.append(f'nothing: {type(model).__name__} has the parameters')
        else:
            if self.channels_last:
                wrappers = getattr(wrapper, 'optim_wrappers', {'': wrapper})
                said.append(
                    use_channels_last(
                        model, [one.optimizer for one in wrappers.values()],
                        self._undo))
            for distiller in distillers(model).values():
                if not distiller.teacher_trainable:
                    said.append(self._speed_up(distiller, runner.cfg))
        runner.logger.info('FastStepHook: %s.', '; '.join(said))

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict[str, Any]) -> None:
        """Let the file be as without this hook."""
        for name in ('state_dict', 'ema_state_dict', 'optimizer'):
            part = checkpoint.get(name, {})
            part.update(tree_map(
                lambda one: one.contiguous()
                if isinstance(one, Tensor) else one, dict(part)))

    def _speed_up(self, distiller: Any, cfg: Any) -> str:
        """Speed a frozen teacher up, and say what comes of its loss."""
        if cfg.get('compile'):
            return 'teacher left alone: cfg.compile compiles it'
        inner = getattr(distiller, 'distiller', None)
        recorders = getattr(inner, 'teacher_recorders', None)
        if inner is None or recorders is None or inner.deliveries.deliveries \
                or {type(one).__name__ for one in recorders.recorders.values()
                    } - _MODULE_RECORDERS:
            return 'teacher left alone: not only its modules are recorded'
        backbone: Any = getattr(distiller.teacher, 'backbone', None)
        if isinstance(backbone, nn.Module) and [*backbone.parameters()]:
            FastBackbone(distiller, self.teacher_dtype, self._undo)
        return _skip_loss(distiller, recorders.recorders, self._undo)


def _skip_loss(distiller: Any, recorders: dict[str, Any],
               undo: ExitStack) -> str:
    """Let a teacher compute no loss and no metrics, or say why it does."""
    kind, head = type(distiller.teacher), getattr(distiller.teacher, 'head', 0)
    methods = (getattr(kind, 'loss', kind), getattr(type(head), 'loss', kind),
               getattr(type(head), '_get_loss', kind))
    if [f'{one.__module__}.{one.__qualname__}'
            for one in methods] != _PLAIN_LOSSES:
        return ("teacher's loss computed: it is not that of a plain "
                'mmpretrain classifier')
    if any(f'{one.source}.'.startswith('head.loss_module.')
           for one in recorders.values()):
        return "teacher's loss computed: a recorder reads it"
    loss: Any = head._get_loss  # type: ignore[union-attr]
    undo.enter_context(
        mock.patch.object(
            head, '_get_loss', lambda *args, **kwargs: {}
            if distiller.training else loss(*args, **kwargs)))
    return "teacher's loss not computed"
