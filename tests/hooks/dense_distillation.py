"""Distillation of a segmentation network of one layer; also as a script.

As a script it is what a launcher starts: it trains, and each rank writes the
statistics that were logged and the logits that they are of.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

import wsld_plugin

CLASSES, IGNORED = 5, 255
Call = tuple[Tensor, Tensor, Tensor]


@DATASETS.register_module()
class NoisyMaps(Dataset):
    """Pictures of 4x6 with labels at random, a fifth of them ignored."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = torch.Generator().manual_seed(index)
        labels = torch.randint(CLASSES, (4, 6), generator=noise)
        ignored = torch.rand(4, 6, generator=noise) < 0.2
        return dict(
            pictures=torch.randn(3, 4, 6, generator=noise),
            labels=labels.masked_fill(ignored, IGNORED))


@MODELS.register_module()
class OneLayer(BaseModel):
    """A convolution learns from another one; keeps what the loss was given."""

    def __init__(self, calls_per_step: int = 1, soft: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Conv2d(3, CLASSES, 1)
        self.teacher = nn.Conv2d(3, CLASSES, 1).requires_grad_(False)
        self.decode_head = nn.Module()
        self.decode_head.loss_kd = MODELS.build(
            dict(type='WSLDLoss', tau=2, ignore_index=IGNORED))
        self.calls_per_step = calls_per_step
        self.soft = soft
        self.calls: list[Call] = []

    def forward(self, pictures: Tensor, labels: Tensor,
                mode: str = 'tensor') -> dict[str, Any]:
        student, teacher = self.student(pictures), self.teacher(pictures)
        if self.soft:
            hard = one_hot(labels.clamp(max=CLASSES - 1), CLASSES)
            labels = 0.7 * hard.movedim(-1, 1) + 0.3 / CLASSES
        loss: Any = 0.0
        for _ in range(self.calls_per_step):
            loss = loss + self.decode_head.loss_kd(student, teacher, labels)
            self.calls.append((student.detach(), teacher, labels))
            student = -2 * student
        return dict(loss=loss)


def config(work_dir: Path, pictures: int = 6, batch_size: int = 2) -> Config:
    """One epoch, a line of log for each iteration."""
    return Config(
        dict(
            work_dir=str(work_dir),
            experiment_name=f'{work_dir.parent.name}_{work_dir.name}',
            model=dict(type='OneLayer'),
            train_dataloader=dict(
                batch_size=batch_size,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                dataset=dict(type='NoisyMaps', length=pictures),
                sampler=dict(type='DefaultSampler', shuffle=False)),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            custom_hooks=[dict(type='WSLDMonitorHook')],
            randomness=dict(seed=0),
            log_level='WARNING'))


def logged(hub: MessageHub) -> dict[str, list[float]]:
    """Every value of every statistic, by its name in the log."""
    return {
        key[len('train/'):]: buffer.data[0].tolist()
        for key, buffer in hub.log_scalars.items()
        if key.startswith('train/wsld')
    }


def main() -> None:
    work_dir = Path(sys.argv[1])
    cfg = config(work_dir, pictures=12)
    cfg.launcher = 'pytorch'
    wsld_plugin.compat.quiet()
    wsld_plugin.compat.prepare_distributed(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    torch.save((logged(runner.message_hub), runner.model.module.calls),
               work_dir / f'rank{runner.rank}.pth')


if __name__ == '__main__':
    main()
