"""Runs of the tiny distillation, and the checkpoints that they leave."""
from __future__ import annotations

import itertools
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from wsld_plugin import compat
from wsld_plugin.checkpoints import read_checkpoint


def save_teacher(cfg: Config, path: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(cfg.model.teacher)
    torch.save(dict(state_dict=teacher.state_dict()), path)
    return str(path)


RUNS = itertools.count()


def again(cfg: Config, **fields: Any) -> Config:
    """The same config for another run; mmengine keeps state by name."""
    cfg = deepcopy(cfg)
    cfg.merge_from_dict(fields)
    compat.prepare_amp(cfg)
    cfg.experiment_name += f'_{next(RUNS)}'
    return cfg


def train(cfg: Config, *hooks: Hook, **fields: Any) -> Runner:
    """Train a copy of a config, with other fields and additional hooks."""
    runner = Runner.from_cfg(again(cfg, **fields))
    for hook in hooks:
        runner.register_hook(hook, priority='LOWEST')
    runner.train()
    return runner


def count(cfg: Config, unit: str, **checkpoint: Any) -> None:
    """Train three epochs or iterations; each is validated and saved."""
    by_epoch = unit == 'epoch'
    cfg.default_hooks.checkpoint.update(
        by_epoch=by_epoch, interval=1, **checkpoint)
    cfg.train_cfg = dict(
        by_epoch=by_epoch, val_interval=1, **{f'max_{unit}s': 3})
    cfg.default_hooks.logger.log_metric_by_epoch = by_epoch


def saved(cfg: Config, epoch: int = 1) -> dict[str, Any]:
    return read_checkpoint(f'{cfg.work_dir}/epoch_{epoch}.pth')


def check_equal(ours: Any, theirs: Any, where: str = '') -> None:
    """Compare nested states bit by bit."""
    if isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in theirs.items():
            check_equal(ours[key], value, f'{where}/{key}')
    elif isinstance(theirs, list):
        check_equal(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    else:
        assert ours == theirs, where


def names(folder: Path, part: str = '') -> set[str]:
    """Files of a folder that have something in their name."""
    return {path.name for path in folder.iterdir()
            if path.is_file() and part in path.name}
