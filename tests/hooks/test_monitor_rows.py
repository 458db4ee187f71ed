"""The monitor sees labels as packages of dense tasks hand them over."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from dense_distillation import OneLayer, config, logged
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor


@MODELS.register_module()
class WithChannel(OneLayer):
    """Gives labels ``(N, 1, H, W)``, and those of the teacher's rows."""

    def forward(self, pictures: Tensor, labels: Tensor,
                mode: str = 'tensor') -> dict[str, Any]:
        student, teacher = self.student(pictures), self.teacher(pictures)
        return dict(loss=self.decode_head.loss_kd(
            student, teacher, labels.unsqueeze(1), teacher_labels=labels))


def test_a_channel_of_labels_makes_no_difference(tmp_path: Path) -> None:
    found = []
    for name in ('OneLayer', 'WithChannel'):
        cfg = config(tmp_path / name)
        cfg.model.type = name
        runner = Runner.from_cfg(cfg)
        runner.train()
        found.append(logged(runner.message_hub))
    assert found[0] == found[1] and found[0]
