"""WSLDMonitorHook against the oracle, and against training without it."""
from __future__ import annotations

import functools
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_distillation import IGNORED, Call, config, logged
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

import wsld_plugin
from wsld_plugin.losses import WSLDLoss

sys.path.insert(0, str(Path(__file__).parents[1]))
import oracle

HERE = Path(__file__).parent
Trained = Callable[..., Runner]
# As the distillation's config has it.
MONITOR = dict(type='WSLDMonitorHook')
QUANTILES = {'weight_p05': 0.05, 'weight_p50': 0.5, 'weight_p95': 0.95}


def rows(calls: list[Call],
         ignored: int = -100) -> list[tuple[list[float], ...]]:
    """Logits and label distributions of every position that counts."""
    found = []
    for student, teacher, labels in calls:
        classes = student.shape[1]
        if not labels.is_floating_point():
            keep = (labels != ignored).flatten()
            labels = torch.nn.functional.one_hot(
                labels.masked_fill(labels == ignored, 0),
                classes).movedim(-1, 1)
        else:
            keep = torch.ones(labels[:, 0].numel(), dtype=torch.bool)
        found += zip(*(tensor.double().movedim(1, -1).reshape(
            -1, classes)[keep].tolist()
                       for tensor in (student, teacher, labels)))
    return found


def best(values: list[float]) -> int:
    return values.index(max(values))


def regularizes(student: list[float], teacher: list[float],
                target: list[float], tau: float) -> bool:
    """``|b| > |a|`` along the label."""
    at_one, soft_s, soft_t = (oracle.softmax(student),
                              oracle.softmax(student, tau),
                              oracle.softmax(teacher, tau))
    a = sum(y * (sum(target) * p - y) for y, p in zip(target, at_one))
    g = sum(y * tau * (p - q) for y, p, q in zip(target, soft_s, soft_t))
    return abs(g - a) > abs(a)


def expected(calls: list[Call], tau: float,
             ignored: int = -100) -> dict[str, float]:
    """What the hook should log, from plain loops over the positions."""
    batch = rows(calls, ignored)
    each: dict[str, list[float]] = {
        'weight_mean': [oracle.weight(*row) for row in batch],
        'regularization_ratio': [regularizes(*row, tau) for row in batch],
        'ce_student': [oracle.cross_entropy(s, y) for s, _, y in batch],
        'ce_teacher': [oracle.cross_entropy(t, y) for _, t, y in batch],
        'top1_student': [100 * (best(s) == best(y)) for s, _, y in batch],
        'top1_teacher': [100 * (best(t) == best(y)) for _, t, y in batch],
        'agreement': [best(s) == best(t) for s, t, _ in batch],
    }
    result = {
        key: math.fsum(values) / len(batch)
        for key, values in each.items()
    }
    weights = sorted(each['weight_mean'])
    for key, share in QUANTILES.items():
        result[key] = weights[math.ceil(share * len(batch)) - 1]
    return result


def check(values: dict[str, list[float]], batches: list[list[Call]],
          tau: float = 2.0, ignored: int = IGNORED,
          prefix: str = 'wsld') -> None:
    """Compare logged statistics, batch by batch, with the oracle's."""
    names = {key for key in values if key.startswith(f'{prefix}/')}
    want = [expected(calls, tau, ignored) for calls in batches]
    assert names == {f'{prefix}/{key}' for key in want[0]}
    for key in want[0]:
        np.testing.assert_allclose(
            values[f'{prefix}/{key}'], [one[key] for one in want],
            rtol=1e-5,
            atol=0.00051 if key in QUANTILES else 1e-7,
            err_msg=key)


def lines(work_dir: Path) -> list[dict[str, Any]]:
    """What LocalVisBackend was given, line by line."""
    scalars, = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in scalars.read_text().splitlines()]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Arguments of each call of a WSLDLoss, as they come."""
    kept: list[Call] = []
    forward = WSLDLoss.forward

    def keep(self: WSLDLoss, student: Tensor, teacher: Tensor,
             gt_labels: Tensor) -> Tensor:
        kept.append((student.detach(), teacher, gt_labels))
        return forward(self, student, teacher, gt_labels)

    monkeypatch.setattr(WSLDLoss, 'forward', keep)
    return kept


@pytest.mark.parametrize('mixup', [False, True])
def test_real_distillation_logs_what_the_oracle_says(
        mixup: bool, tiny_config: Config, trained: Trained,
        calls: list[Call], tmp_path: Path) -> None:
    assert MONITOR in tiny_config.custom_hooks
    tiny_config.train_cfg.max_epochs = 2
    tiny_config.default_hooks.logger.interval = 2
    if not mixup:
        tiny_config.model.architecture.train_cfg = None
    runner = trained(tiny_config)
    # Three iterations make an epoch; a line is written after the second.
    assert len(calls) == 6
    assert calls[0][2].is_floating_point() == mixup
    check(logged(runner.message_hub), [calls[1:2], calls[4:5]], tau=4)
    steps = {line['step']: line['wsld/ce_student'] for line in lines(tmp_path)
             if 'wsld/ce_student' in line}
    assert steps == {
        step: pytest.approx(expected(calls[step - 1:step], 4)['ce_student'],
                            rel=1e-5)
        for step in (2, 5)
    }


def test_training_is_the_same_to_the_bit(tiny_config: Config,
                                         trained: Trained) -> None:
    tiny_config.default_hooks.epoch_seed = None
    ends = []
    for monitor in (True, False):
        cfg = tiny_config.copy()
        if not monitor:
            cfg.custom_hooks = [
                hook for hook in cfg.custom_hooks if hook != MONITOR
            ]
        cfg.default_hooks = {
            key: hook
            for key, hook in cfg.default_hooks.items() if hook
        }
        cfg.experiment_name += str(monitor)
        runner = trained(cfg)
        assert bool(logged(runner.message_hub)) == monitor
        ends.append((runner.model.state_dict(), {
            key: buffer.data[0].tolist()
            for key, buffer in runner.message_hub.log_scalars.items()
            if 'loss' in key
        }))
    for key, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][key]), key
    assert ends[0][1] == ends[1][1]
    assert len(ends[0][1]['train/loss']) == 3


def test_several_losses_have_names_without_the_word(
        tiny_config: Config, trained: Trained, calls: list[Call]) -> None:
    assert MONITOR in tiny_config.custom_hooks
    distiller = tiny_config.model.distiller
    distiller.distill_losses['cold_loss'] = dict(type='WSLDLoss', tau=0.5)
    distiller.loss_forward_mappings['cold_loss'] = (
        distiller.loss_forward_mappings.loss_wsld)
    values = logged(trained(tiny_config).message_hub)
    assert not any('loss' in key for key in values)
    check(values, [[call] for call in calls[::2]], 4, prefix='wsld/wsld')
    check(values, [[call] for call in calls[1::2]], 0.5, prefix='wsld/cold')
    assert (values['wsld/wsld/regularization_ratio'] !=
            values['wsld/cold/regularization_ratio'])
    assert len(values) == 20


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('block', [2**20, 60])
def test_dense_predictions_and_ignored_positions(
        block: int, soft: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of six positions in both pictures, the other time of all.
    monkeypatch.setattr('wsld_plugin.hooks.wsld_monitor._BLOCK', block)
    cfg = config(tmp_path)
    cfg.model.soft = soft
    runner = Runner.from_cfg(cfg)
    runner.train()
    calls = runner.model.calls
    assert soft or any((call[2] == IGNORED).any() for call in calls)
    check(logged(runner.message_hub), [[call] for call in calls])


def test_diverged_training_is_logged_as_such(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.optim_wrapper.optimizer.lr = math.inf
    runner = Runner.from_cfg(cfg)
    runner.train()
    values = logged(runner.message_hub)
    assert math.isfinite(values['wsld/ce_student'][0])
    for key in ('weight_mean', 'ce_student'):
        assert [*map(math.isnan, values[f'wsld/{key}'])][1:] == [True, True]
    assert all(map(math.isfinite, values['wsld/ce_teacher']))


def test_repeated_calls_and_accumulated_iterations_add_up(
        tmp_path: Path) -> None:
    cfg = config(tmp_path, pictures=14)
    cfg.model.calls_per_step = 2
    cfg.optim_wrapper.accumulative_counts = 3
    cfg.default_hooks.logger.interval = 4
    runner = Runner.from_cfg(cfg)
    runner.train()
    calls = runner.model.calls
    assert len(calls) == 14
    # The fourth iteration is logged, with the two before it.
    check(logged(runner.message_hub), [calls[2:8]])


def test_every_line_of_an_iteration_loop_has_them(tmp_path: Path) -> None:
    cfg = config(tmp_path, pictures=20)
    cfg.train_cfg = dict(by_epoch=False, max_iters=8)
    cfg.log_processor = dict(by_epoch=False)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    cfg.default_hooks.logger.interval = 4
    runner = Runner.from_cfg(cfg)
    runner.train()
    calls = runner.model.calls
    check(logged(runner.message_hub), [calls[3:4], calls[7:8]])
    assert [(line['step'], 'wsld/agreement' in line)
            for line in lines(tmp_path)] == [(4, True), (8, True)]


def test_losses_are_given_back_as_they_were(tmp_path: Path) -> None:
    runner = Runner.from_cfg(config(tmp_path))
    loss = runner.model.decode_head.loss_kd
    runner.train()
    assert 'forward' not in vars(loss)
    # Somebody else's wrapper stays in place, too.
    theirs = loss.forward = functools.partial(loss.forward)
    runner = Runner.from_cfg(config(tmp_path / 'wrapped'))
    runner.model.decode_head.loss_kd = loss
    runner.train()
    assert vars(loss)['forward'] is theirs
    assert len(logged(runner.message_hub)['wsld/agreement']) == 3


def test_short_epochs_are_logged_at_their_end(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.default_hooks.logger.interval = 100
    runner = Runner.from_cfg(cfg)
    runner.train()
    check(logged(runner.message_hub), [runner.model.calls[2:]])


class Silence(Hook):
    """Leaves the loss out, or all labels, from the second iteration on."""

    def __init__(self, how: str) -> None:
        self.how = how

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        if batch_idx == 0:
            return
        if self.how == 'ignored':
            data_batch['labels'].fill_(IGNORED)
        else:
            runner.model.decode_head.loss_kd = torch.nn.Identity()
            runner.model.calls_per_step = 0
            runner.model.forward = lambda *_, **__: dict(
                loss=runner.model.student.weight.sum())


@pytest.mark.parametrize('how', ['ignored', 'not called'])
def test_nothing_old_is_logged_again(how: str, tmp_path: Path) -> None:
    runner = Runner.from_cfg(config(tmp_path))
    runner.register_hook(Silence(how))
    runner.train()
    assert ['wsld/agreement' in line for line in lines(tmp_path)] == [
        True, False, False
    ]
    assert logged(runner.message_hub) == {}


def test_two_processes_log_the_statistics_of_both(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / 'dense_distillation.py'), tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ, 'OMP_NUM_THREADS': '1',
                'CUDA_VISIBLE_DEVICES': '-1',
                'PYTHONPATH': str(HERE.parents[1]),
                'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port,
                'WORLD_SIZE': '2', 'RANK': rank, 'LOCAL_RANK': rank
            }) for rank in '01'
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    values, calls = zip(*(torch.load(tmp_path / f'rank{rank}.pth')
                          for rank in range(2)))
    assert values[0] == values[1]
    assert not torch.equal(calls[0][0][0], calls[1][0][0])
    check(values[0], [list(both) for both in zip(*calls)])


@pytest.mark.skipif(get_device() != 'cpu', reason='not on the CPU alone')
def test_half_precision_logits_are_widened(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    wsld_plugin.compat.prepare_amp(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    calls = runner.model.calls
    assert calls[0][0].dtype == calls[0][1].dtype == torch.bfloat16
    check(logged(runner.message_hub), [[call] for call in calls])


@pytest.mark.skipif(
    find_spec('tensorboard') is None, reason='TensorBoard is not installed')
def test_tensorboard_gets_the_tags(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )
    cfg = config(tmp_path)
    cfg.visualizer = dict(
        type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')])
    runner = Runner.from_cfg(cfg)
    runner.train()
    events, = tmp_path.rglob('events.out.tfevents.*')
    board = EventAccumulator(str(events)).Reload()
    for key, values in logged(runner.message_hub).items():
        scalars = board.Scalars(key)
        assert [one.step for one in scalars] == [1, 2, 3]
        assert [one.value for one in scalars] == pytest.approx(values)


def test_resumed_run_goes_on_logging(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    Runner.from_cfg(cfg).train()
    cfg = config(tmp_path)
    cfg.experiment_name += '_resumed'
    cfg.train_cfg.max_epochs = 2
    cfg.resume = True
    runner = Runner.from_cfg(cfg)
    runner.train()
    values = logged(runner.message_hub)
    assert len(values['wsld/weight_mean']) == 6
    check({key: value[3:] for key, value in values.items()},
          [[call] for call in runner.model.calls])


@pytest.mark.skipif(
    not hasattr(getattr(torch, 'compiler', None), 'disable'),
    reason='nothing to compile with')
def test_compiled_training_is_watched_from_any_iteration_on(
        tmp_path: Path) -> None:
    cfg = config(tmp_path, pictures=12)
    cfg.compile = dict(backend='eager')
    cfg.default_hooks.logger.interval = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    check(logged(runner.message_hub),
          [[call] for call in runner.model.calls[1::2]])


def test_model_without_the_loss_is_mentioned(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.model.decode_head.loss_kd = torch.nn.Bilinear(1, 1, 1)
    runner.model.calls_per_step = 0
    runner.model.forward = lambda *_, **__: dict(
        loss=runner.model.student.weight.sum())
    runner.train()
    assert logged(runner.message_hub) == {}
    log, = tmp_path.glob('*/*.log')
    assert 'the model has no WSLDLoss' in log.read_text()


@pytest.mark.parametrize('paths, names', [
    (['loss'], ['wsld']),
    (['d.losses.loss_a', 'd.losses.LossB'], ['wsld/a', 'wsld/B']),
    (['x.loss_kd', 'y.loss_kd'], ['wsld/x.kd', 'wsld/y.kd']),
    (['a.loss', 'b.loss'], ['wsld/a', 'wsld/b']),
    (['loss', 'loss_'], ['wsld/0', 'wsld/1']),
])
def test_names(paths: list[str], names: list[str]) -> None:
    from wsld_plugin.hooks.wsld_monitor import _prefixes
    assert _prefixes(paths) == names
