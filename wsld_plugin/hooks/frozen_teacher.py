"""Keep a frozen teacher deterministic while the student trains."""
from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .teachers import distillers


@HOOKS.register_module()
class FrozenTeacherHook(Hook):
    """Switch a frozen teacher's dropout, drop-path and the like off.

    mmrazor's ``SingleTeacherDistill`` puts its teacher in training mode and
    takes back BatchNorm only, so that a teacher with dropout or stochastic
    depth hands out random targets. Before each training iteration this hook
    puts every other module of the teacher in evaluation mode. Batch and
    instance normalisation stay as ``teacher_norm_eval`` left them; a teacher
    that trains (``teacher_trainable=True``) is not touched.
    """

    def before_train(self, runner: Runner) -> None:
        """Find the frozen teachers."""
        self._frozen: list[nn.Module] = [
            distiller.teacher for distiller in distillers(
                runner.model).values() if not distiller.teacher_trainable
        ]

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Any = None) -> None:
        """Undo what the loop's ``model.train()`` did to the teachers."""
        for teacher in self._frozen:
            # Not `eval()`: it would reach the normalisation inside.
            for part in teacher.modules() if teacher.training else ():
                if not isinstance(part, (_BatchNorm, _InstanceNorm)):
                    part.training = False
