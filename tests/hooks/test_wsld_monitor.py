"""WSLDMonitorHook against the oracle, and against training without it.

As a script it trains a segmentation network of one layer, and each rank
writes the statistics that were logged and the logits that they are of.
"""
from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from hook_tester import launch
from loss_tester import rows_of, targets_of
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from short_runs import train
from torch import Tensor, nn
from torch.nn.functional import one_hot

import wsld_plugin
from wsld_plugin.functional import blocks
from wsld_plugin.hooks import wsld_monitor
from wsld_plugin.losses import WSLDLoss

QUANTILES = {'weight_p05': 0.05, 'weight_p50': 0.5, 'weight_p95': 0.95}
CLASSES, IGNORED = 5, 255
Call = tuple[Tensor, Tensor, Tensor]


@DATASETS.register_module()
def noisy_maps(length: int) -> list[dict[str, Tensor]]:
    """Pictures of 4x6 with labels at random, a fifth of them ignored."""
    noise = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (length, 4, 6), generator=noise)
    ignored = torch.rand(length, 4, 6, generator=noise) < 0.2
    pictures = torch.randn(length, 3, 4, 6, generator=noise)
    return [dict(pictures=picture, labels=label) for picture, label in zip(
        pictures, labels.masked_fill(ignored, IGNORED))]


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


def config(work_dir: Path, pictures: int = 6, **fields: Any) -> Config:
    """One epoch of steps of two pictures, a line of log for each of them."""
    cfg = Config(dict(
        work_dir=str(work_dir),
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}',
        model=dict(type='OneLayer'),
        train_dataloader=dict(
            batch_size=2, num_workers=0,
            collate_fn=dict(type='default_collate'),
            dataset=dict(type='noisy_maps', length=pictures),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='WSLDMonitorHook')],
        randomness=dict(seed=0),
        log_level='WARNING'))
    cfg.merge_from_dict(fields)
    return cfg


def logged(hub: MessageHub) -> dict[str, list[float]]:
    """Every value of every statistic, by its name in the log."""
    return {key[len('train/'):]: buffer.data[0].tolist()
            for key, buffer in hub.log_scalars.items()
            if key.startswith('train/wsld')}


def expected(calls: list[Call], tau: float) -> dict[str, float]:
    """What the hook should log, from plain loops over the positions."""
    batch = [row for student, teacher, labels in calls for row in zip(
        rows_of(student), rows_of(teacher),
        targets_of(labels, student.shape[1], IGNORED)) if row[2] is not None]
    best = [[max(range(len(z)), key=z.__getitem__) for z in row]
            for row in batch]
    each: dict[str, list[float]] = {
        'weight_mean': [oracle.weight(*row) for row in batch],
        'regularization_ratio': [
            oracle.is_regularization(*row, tau) for row in batch],
        'ce_student': [oracle.cross_entropy(s, y) for s, _, y in batch],
        'ce_teacher': [oracle.cross_entropy(t, y) for _, t, y in batch],
        'top1_student': [100 * (s == y) for s, _, y in best],
        'top1_teacher': [100 * (t == y) for _, t, y in best],
        'agreement': [s == t for s, t, _ in best],
    }
    weights = sorted(each['weight_mean'])
    return {
        **{key: math.fsum(values) / len(batch)
           for key, values in each.items()},
        **{key: weights[math.ceil(share * len(batch)) - 1]
           for key, share in QUANTILES.items()}}


def check(values: dict[str, list[float]], batches: list[list[Call]],
          tau: float = 2.0, prefix: str = 'wsld') -> None:
    """Compare logged statistics, batch by batch, with the oracle's."""
    want = [expected(calls, tau) for calls in batches]
    assert {key for key in values if key.startswith(f'{prefix}/')
            } == {f'{prefix}/{key}' for key in want[0]}
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


def trained_on_maps(cfg: Config, *hooks: Hook
                    ) -> tuple[dict[str, list[float]], list[Call]]:
    """What was logged, and what the loss was given."""
    runner = train(cfg, *hooks)
    return logged(runner.message_hub), runner.model.calls


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
        mixup: bool, tiny_config: Config, calls: list[Call],
        tmp_path: Path) -> None:
    tiny_config.train_cfg.max_epochs = 2
    tiny_config.default_hooks.logger.interval = 2
    if not mixup:
        tiny_config.model.architecture.train_cfg = None
    runner = train(tiny_config)
    # Three iterations make an epoch; a line is written after the second.
    assert len(calls) == 6
    assert calls[0][2].is_floating_point() == mixup
    check(logged(runner.message_hub), [calls[1:2], calls[4:5]], tau=4)
    assert [line['step'] for line in lines(tmp_path)
            if 'wsld/ce_student' in line] == [2, 5]


def test_several_losses_have_names_without_the_word(
        tiny_config: Config, calls: list[Call]) -> None:
    distiller = tiny_config.model.distiller
    distiller.distill_losses['cold_loss'] = dict(type='WSLDLoss', tau=0.5)
    distiller.loss_forward_mappings['cold_loss'] = (
        distiller.loss_forward_mappings.loss_wsld)
    values = logged(train(tiny_config).message_hub)
    check(values, [[call] for call in calls[::2]], 4, prefix='wsld/wsld')
    check(values, [[call] for call in calls[1::2]], 0.5, prefix='wsld/cold')
    assert len(values) == 20


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('block', [2**20, 60])
def test_dense_predictions_and_ignored_positions(
        block: int, soft: bool, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of two lines of a picture, the other time of all.
    monkeypatch.setattr(blocks, '_CPU_BLOCK', block)
    values, calls = trained_on_maps(
        config(tmp_path, **{'model.soft': soft}))
    assert soft or any((call[2] == IGNORED).any() for call in calls)
    check(values, [[call] for call in calls])


@MODELS.register_module()
class WithChannel(OneLayer):
    """Gives labels ``(N, 1, H, W)``, and those of the teacher's rows."""

    def forward(self, pictures: Tensor, labels: Tensor,
                mode: str = 'tensor') -> dict[str, Any]:
        student, teacher = self.student(pictures), self.teacher(pictures)
        return dict(loss=self.decode_head.loss_kd(
            student, teacher, labels.unsqueeze(1), teacher_labels=labels))


def test_a_channel_of_labels_makes_no_difference(tmp_path: Path) -> None:
    found = [
        trained_on_maps(config(tmp_path / name, **{'model.type': name}))[0]
        for name in ('OneLayer', 'WithChannel')]
    assert found[0] == found[1] and found[0]


@pytest.mark.parametrize('soft', [False, True])
def test_the_host_waits_for_no_block(soft: bool) -> None:
    # Tensors without data: what would have to be read cannot be.
    logits = torch.empty(2, 19, 512, 256, device='meta')
    labels = logits if soft else logits[:, 0].long()
    sums = wsld_monitor._block_sums(logits, logits, labels, WSLDLoss(tau=2))
    assert sums.device.type == 'meta'


def test_diverged_training_is_logged_as_such(tmp_path: Path) -> None:
    values, _ = trained_on_maps(
        config(tmp_path, **{'optim_wrapper.optimizer.lr': math.inf}))
    for key in ('weight_mean', 'ce_student'):
        assert [*map(math.isnan, values[f'wsld/{key}'])] == [False, True, True]
    assert all(map(math.isfinite, values['wsld/ce_teacher']))


@pytest.mark.parametrize('by_epoch', [True, False])
def test_repeated_calls_and_accumulated_iterations_add_up(
        by_epoch: bool, tmp_path: Path) -> None:
    cfg = config(tmp_path, pictures=14, **{
        'model.calls_per_step': 2, 'optim_wrapper.accumulative_counts': 3,
        'default_hooks.logger.interval': 4})
    if not by_epoch:
        cfg.train_cfg = dict(by_epoch=False, max_iters=7)
        cfg.log_processor = dict(by_epoch=False)
    values, calls = trained_on_maps(cfg)
    assert len(calls) == 14
    # The fourth iteration is logged, with the two before it.
    check(values, [calls[2:8]])


class Silence(Hook):
    """All labels are ignored from the second iteration on."""

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        if batch_idx:
            data_batch['labels'].fill_(IGNORED)


def test_nothing_old_is_logged_again(tmp_path: Path) -> None:
    values, _ = trained_on_maps(config(tmp_path), Silence())
    assert ['wsld/agreement' in line for line in lines(tmp_path)] == [
        True, False, False]
    assert values == {}


class Accident(Hook):
    """The second iteration fails before it reaches the loss."""

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        if batch_idx:
            del data_batch['pictures']


@pytest.mark.parametrize('fails', [True, False])
@pytest.mark.parametrize('wrapped', [True, False])
def test_losses_are_given_back_as_they_were(fails: bool, wrapped: bool,
                                            tmp_path: Path) -> None:
    runner = Runner.from_cfg(config(tmp_path))
    loss = runner.model.decode_head.loss_kd
    if wrapped:
        # Somebody else's wrapper stays in place.
        loss.forward = functools.partial(loss.forward)
    before = vars(loss).copy()
    if fails:
        runner.register_hook(Accident())
        with pytest.raises(TypeError, match='pictures'):
            runner.train()
    else:
        runner.train()
    assert logged(runner.message_hub)
    assert vars(loss) == before
    assert 'run' not in vars(runner.train_loop)


def test_two_processes_log_the_statistics_of_both(tmp_path: Path) -> None:
    launch(__file__, tmp_path)
    values, calls = zip(*(torch.load(tmp_path / f'rank{rank}.pth')
                          for rank in range(2)))
    assert values[0] == values[1]
    assert not torch.equal(calls[0][0][0], calls[1][0][0])
    check(values[0], [list(both) for both in zip(*calls)])


@pytest.mark.skipif(get_device() != 'cpu', reason='not on the CPU alone')
def test_half_precision_logits_are_widened(tmp_path: Path) -> None:
    cfg = config(tmp_path, optim_wrapper=dict(
        type='AmpOptimWrapper', dtype='bfloat16'))
    wsld_plugin.compat.prepare_amp(cfg)
    values, calls = trained_on_maps(cfg)
    assert calls[0][0].dtype == calls[0][1].dtype == torch.bfloat16
    check(values, [[call] for call in calls])


@pytest.mark.skipif(
    not hasattr(getattr(torch, 'compiler', None), 'disable'),
    reason='nothing to compile with')
def test_compiled_training_is_watched_from_any_iteration_on(
        tmp_path: Path) -> None:
    values, calls = trained_on_maps(config(tmp_path, pictures=40, **{
        'compile': dict(backend='eager'),
        'default_hooks.logger.interval': 2}))
    check(values, [[call] for call in calls[1::2]])


@pytest.mark.parametrize('paths, names', [
    (['loss'], ['wsld']),
    (['d.losses.loss_a', 'd.losses.LossB'], ['wsld/a', 'wsld/B']),
    (['x.loss_kd', 'y.loss_kd'], ['wsld/x.kd', 'wsld/y.kd']),
    (['loss', 'loss_'], ['wsld/0', 'wsld/1']),
])
def test_names(paths: list[str], names: list[str]) -> None:
    assert wsld_monitor._prefixes(paths) == names


def main() -> None:
    work_dir = Path(sys.argv[1])
    cfg = config(work_dir, pictures=12, launcher='pytorch')
    wsld_plugin.compat.quiet()
    wsld_plugin.compat.prepare_distributed(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    torch.save((logged(runner.message_hub), runner.model.module.calls),
               work_dir / f'rank{runner.rank}.pth')


if __name__ == '__main__':
    main()
