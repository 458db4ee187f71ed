"""The small hooks: what they freeze, validate, seed and raise."""
from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from short_runs import again, check_equal, train
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsld_plugin.hooks.epoch_seed import epoch_seed

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
        by_epoch: bool, norm_eval: bool, trainable: bool,
        tiny_config: Config) -> None:
    tiny_config.model.update(
        teacher_norm_eval=norm_eval, teacher_trainable=trainable)
    if not by_epoch:
        tiny_config.train_cfg = dict(
            by_epoch=False, max_iters=3, val_interval=2)
    watch = Watch()
    train(tiny_config, watch)
    assert watch.repeatable == 3 * [not trainable]
    assert watch.teacher == {(True, not norm_eval), (False, trainable)}
    assert watch.student == {True}


def test_metrics_are_the_teachers(taught: Config) -> None:
    alone = again(taught, load_from=taught.model.teacher_ckpt,
                  work_dir=f'{taught.work_dir}/alone')
    alone.model = taught.model.teacher
    expected = {f'teacher/{key}': pytest.approx(value, abs=1e-4)
                for key, value in Runner.from_cfg(alone).val().items()}
    runner = train(taught)
    metrics = runner.message_hub.get_info('teacher_metrics')
    assert metrics == expected
    scalars = Path(runner.log_dir, 'vis_data', 'scalars.json')
    first, *others = map(json.loads, scalars.read_text().splitlines())
    assert first == {**metrics, 'step': 0}
    assert 'accuracy/top1' in others[-1]
    assert not any(key.startswith('teacher') for key in others[-1])


@pytest.mark.parametrize('name', ['validate_teacher', 'wsld_monitor'])
def test_training_goes_on_as_without_it(
        name: str, tiny_config: Config,
        monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine with GPUs that this process has no use for: asking them
    # for their random state is slow, and here it fails.
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    # Without the seeds that each epoch gets, one random number drawn more
    # would show.
    del tiny_config.default_hooks['epoch_seed']
    runs = [train(tiny_config)]
    del tiny_config.default_hooks[name]
    runs.append(train(tiny_config))
    check_equal(*(dict(run.model.state_dict()) for run in runs))
    check_equal(*(run.message_hub.get_scalar('train/loss').data[0].tolist()
                  for run in runs))
    # It left something.
    said, silent = ({*run.message_hub.runtime_info,
                     *run.message_hub.log_scalars} for run in runs)
    assert said > silent


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
    seeds = {epoch_seed(seed, epoch, rank) for seed in range(4)
             for epoch in range(100) for rank in range(8)}
    assert len(seeds) == 4 * 100 * 8
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_every_epoch_draws_its_own_numbers_again(tiny_config: Config) -> None:
    tiny_config.train_cfg.max_epochs = 2
    tiny_config.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    whole, resumed = Draws(), Draws()
    train(tiny_config, whole)
    train(tiny_config, resumed, resume=True,
          load_from=f'{tiny_config.work_dir}/epoch_1.pth')
    assert len(set(whole.seen)) == 2
    assert resumed.seen == whole.seen[1:]


def test_own_worker_init_is_kept(tiny_config: Config) -> None:
    tiny_config.train_dataloader.worker_init_fn = dict(type='own_init')
    draws = Draws()
    train(tiny_config, draws)
    assert draws.seen[0][-1] is own_init


@pytest.mark.parametrize('persistent', [True, False])
def test_persistent_workers_are_mentioned(
        persistent: bool, tiny_config: Config, tmp_path: Path) -> None:
    tiny_config.train_dataloader.update(
        num_workers=1, persistent_workers=persistent)
    train(tiny_config)
    log, = tmp_path.glob('*/*.log')
    assert ('persistent_workers=True' in log.read_text()) is persistent


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in network.modules()
            if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize('momentum, limit, expected', [
    # Three steps, then more of a training that nobody waits for.
    (0.001, 3, 0.1), (0.2, 3, 0.2), (None, 3, None), (0.001, 1000, 0.05),
    (0.001, 10**6, 0.001)])
def test_momentum(momentum: float | None, limit: int, expected: float | None,
                  tiny_config: Config) -> None:
    tiny_config.custom_hooks = [dict(type='NormMomentumHook')]
    if limit != 3:
        tiny_config.train_cfg = dict(
            by_epoch=False, max_iters=limit, val_interval=limit)
    runner = Runner.from_cfg(tiny_config)
    for norm in norms(runner.model):
        norm.momentum = momentum
    if limit == 3:
        runner.train()
    else:
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.call_hook('before_train')
    assert {norm.momentum for norm in norms(runner.model.teacher)} == {
        momentum}
    assert {norm.momentum for norm in norms(runner.model.architecture)} == {
        expected}
