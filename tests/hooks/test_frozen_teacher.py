"""FrozenTeacherHook against what mmrazor's distiller does to its teacher."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

PICTURES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Watch(Hook):
    """Looks at both networks in the midst of training."""

    def __init__(self) -> None:
        self.repeatable: list[bool] = []
        self.teacher: set[tuple[bool, bool]] = set()
        self.student: set[bool] = set()

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        teacher = runner.model.teacher
        with torch.no_grad():
            first, second = teacher(PICTURES), teacher(PICTURES)
        self.repeatable.append(torch.equal(first, second))
        self.teacher |= {(isinstance(module, _BatchNorm), module.training)
                         for module in teacher.modules()}
        self.student |= {
            module.training for module in runner.model.student.modules()}


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('norm_eval, trainable', [
    (True, False), (False, False), (False, True)])
def test_only_normalisation_may_train(
        by_epoch: bool, norm_eval: bool, trainable: bool, tiny_config: Config,
        trained: Callable[..., Runner]) -> None:
    tiny_config.model.update(
        teacher_norm_eval=norm_eval, teacher_trainable=trainable)
    if not by_epoch:
        tiny_config.train_cfg = dict(
            by_epoch=False, max_iters=3, val_interval=2)
    watch = Watch()
    trained(tiny_config, watch)
    assert watch.repeatable == 3 * [not trainable]
    assert watch.teacher == {(True, not norm_eval), (False, trainable)}
    assert watch.student == {True}
