"""EpochSeedHook: seeds by epoch and rank, for this process and workers."""
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner

from wsld_plugin.hooks.epoch_seed import epoch_seed


class Draws(Hook):
    """Notes each epoch's first random numbers and the workers' seed."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def before_train_epoch(self, runner: Runner) -> None:
        init = runner.train_dataloader.worker_init_fn
        self.seen.append(
            (random.random(), np.random.rand(), torch.rand(()).item(),
             init.keywords.get('seed'), init.func))


@FUNCTIONS.register_module()
def own_init(worker_id: int) -> None:
    """A user's worker_init_fn."""


def test_seeds_differ_by_seed_epoch_and_rank() -> None:
    seeds = {
        epoch_seed(seed, epoch, rank)
        for seed in range(4) for epoch in range(100) for rank in range(8)
    }
    assert len(seeds) == 4 * 100 * 8
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_every_epoch_draws_its_own_numbers_again(
        tiny_config: Config, trained: Callable[..., Runner],
        tmp_path: Path) -> None:
    tiny_config.train_cfg.max_epochs = 2
    tiny_config.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    whole, resumed = Draws(), Draws()
    trained(tiny_config, whole)
    tiny_config.resume = True
    tiny_config.load_from = str(tmp_path / 'epoch_1.pth')
    tiny_config.experiment_name += 'resumed'
    trained(tiny_config, resumed)
    assert len(set(whole.seen)) == 2
    assert resumed.seen == whole.seen[1:]


def test_own_worker_init_is_kept(tiny_config: Config,
                                 trained: Callable[..., Runner]) -> None:
    tiny_config.train_dataloader.worker_init_fn = dict(type='own_init')
    draws = Draws()
    trained(tiny_config, draws)
    assert draws.seen[0][-1] is own_init


@pytest.mark.parametrize('persistent', [True, False])
def test_persistent_workers_are_mentioned(
        persistent: bool, tiny_config: Config,
        trained: Callable[..., Runner], tmp_path: Path) -> None:
    tiny_config.train_dataloader.update(
        num_workers=1, persistent_workers=persistent)
    trained(tiny_config)
    log, = tmp_path.glob('*/*.log')
    assert ('persistent_workers=True' in log.read_text()) is persistent
