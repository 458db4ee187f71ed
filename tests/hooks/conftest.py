"""A distillation small enough to run in every test."""
from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from short_runs import save_teacher

CONFIG = Path(__file__).parents[1] / 'tools' / 'tiny_distillation.py'


@pytest.fixture
def tiny_config(tmp_path: Path) -> Config:
    """One epoch of three steps of the digits distillation."""
    cfg = Config.fromfile(CONFIG)
    # mmengine shares state between runs of one name.
    cfg.experiment_name = f'{tmp_path.parent.name}_{tmp_path.name}'
    cfg.work_dir = str(tmp_path)
    cfg.log_level = 'WARNING'
    cfg.train_dataloader.update(num_workers=0, batch_size=8)
    cfg.train_dataloader.dataset.update(indices=24, serialize_data=False)
    cfg.val_dataloader.update(num_workers=0)
    cfg.val_dataloader.dataset.update(indices=40, serialize_data=False)
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = []
    return cfg


@pytest.fixture
def taught(tiny_config: Config, tmp_path: Path) -> Config:
    """The tiny distillation with a teacher from a file that changes."""
    tiny_config.model.teacher_ckpt = save_teacher(
        tiny_config, tmp_path / 'teacher.pth')
    tiny_config.model.teacher_norm_eval = False
    tiny_config.work_dir = str(tmp_path / 'run')
    return tiny_config
