"""DistillCheckpointHook: which files there are, whatever breaks off."""
from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import FileClient, LocalBackend
from mmengine.hooks import Hook
from mmengine.runner import Runner
from short_runs import check_equal, count, names, train

from wsld_plugin.checkpoints import export_student, read_checkpoint
from wsld_plugin.hooks import DistillCheckpointHook


class KilledAtValidation(Hook):
    """A kill between an epoch's checkpoint and the end of its validation."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def after_val_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.epoch == self.epoch or runner.iter == self.epoch:
            raise KeyboardInterrupt


def state_of(runner: Runner, folder: Path) -> tuple[Any, ...]:
    """Files, validations, the best, and metrics beside the student."""
    validations = {
        line['step']: line['accuracy/top1']
        for path in folder.glob('*/vis_data/scalars.json')
        for line in map(json.loads, path.read_text().splitlines())
        if 'accuracy/top1' in line}
    info = runner.message_hub.runtime_info
    students = {path.name: read_checkpoint(str(path))['meta']['metrics']
                for path in folder.glob('*_student.pth')}
    return (names(folder, '.pth'), validations, info['best_score'],
            Path(info['best_ckpt']).name, students)


@pytest.mark.parametrize('rule, killed, unit', [
    *(('greater', killed, 'epoch') for killed in (1, 2, 3)),
    ('less', 2, 'epoch'), ('greater', 2, 'iter'), ('greater', 3, 'iter')])
def test_a_cut_validation_is_made_up(taught: Config, tmp_path: Path,
                                     unit: str, killed: int,
                                     rule: str) -> None:
    count(taught, unit, save_best='accuracy/top1', rule=rule)
    whole = tmp_path / 'whole'
    expected = state_of(train(taught, work_dir=str(whole)), whole)
    with pytest.raises(KeyboardInterrupt):
        train(taught, KilledAtValidation(killed))
    resumed = train(taught, resume=True)
    assert resumed.epoch == 3 or resumed.iter == 3
    got = state_of(resumed, Path(taught.work_dir))
    assert len(got[1]) == 3
    if unit == 'epoch' or killed == 3:
        assert got == expected


def test_the_best_is_not_validated_again(taught: Config) -> None:
    taught.default_hooks.checkpoint.save_best = 'accuracy/top1'
    train(taught)
    assert train(taught, KilledAtValidation(1), resume=True).epoch == 1


@pytest.mark.parametrize('averaged', [False, True])
def test_student_beside_the_checkpoint(taught: Config, tmp_path: Path,
                                       averaged: bool) -> None:
    if averaged:
        taught.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    taught.default_hooks.checkpoint.save_best = 'auto'
    train(taught)
    for name in ('epoch_1', 'best_accuracy_top1_epoch_1'):
        path = Path(taught.work_dir, f'{name}_student.pth')
        student = torch.load(path)
        assert set(student) == {'state_dict', 'meta'}
        # EMAHook's average is where the model was.
        assert {one.device.type
                for one in student['state_dict'].values()} == {'cpu'}
        # What was exported with the tool before is the same.
        for number, source in enumerate((path.with_stem(name), path)):
            out = export_student(str(source), f'{tmp_path}/{name}{number}')
            assert out.averaged == averaged
            check_equal(dict(student['state_dict']),
                        dict(read_checkpoint(str(out.path))['state_dict']))
        meta = student['meta']
        assert (meta['source'], meta['epoch']) == (f'{name}.pth', 1)
        assert 'ImageClassifier' in meta['cfg']
        assert 0 <= meta['metrics']['accuracy/top1'] <= 100


@FileClient.register_backend('shouting')
class Shouting(LocalBackend):
    """Another place than the local disk: a folder in capitals."""

    def put(self, obj: bytes, filepath: str) -> None:
        super().put(obj, self._there(filepath))

    def isfile(self, filepath: str) -> bool:
        return super().isfile(self._there(filepath))

    def remove(self, filepath: str) -> None:
        super().remove(self._there(filepath))

    @staticmethod
    def _there(filepath: str) -> Path:
        return Path(filepath).parent / 'THERE' / Path(filepath).name


@pytest.mark.parametrize('unit, client', [
    ('epoch', None), ('iter', None), ('epoch', dict(backend='shouting'))])
def test_students_go_with_their_checkpoints(
        taught: Config, unit: str, client: dict[str, str] | None) -> None:
    count(taught, unit, max_keep_ckpts=2, save_best='auto',
          file_client_args=client)
    work_dir = Path(taught.work_dir)
    there = work_dir / 'THERE' if client else work_dir
    best = Path(train(taught).message_hub.get_info('best_ckpt')).stem
    assert names(there, '.pth') == {
        f'{name}{kind}.pth' for name in (f'{unit}_2', f'{unit}_3', best)
        for kind in ('', '_student')}
    last = work_dir / 'last_checkpoint'
    assert last.read_text() == str(work_dir / f'{unit}_3.pth')
    last.write_text(str(there / f'{unit}_3.pth'))
    # Fewer are kept from now on; a killed process left a part of a file.
    taught.default_hooks.checkpoint.max_keep_ckpts = 1
    part = work_dir / f'{unit}_4.pth.65534.part'
    part.touch()
    train(taught, resume=True)
    assert {name for name in names(there) if name.startswith(unit)} == {
        f'{unit}_3.pth', f'{unit}_3_student.pth'}
    # Another place's parts are its own business.
    assert part.exists() == bool(client)


def test_metrics_decide_between_several_best(taught: Config) -> None:
    keys = ['accuracy/top1', 'single-label/f1-score']
    taught.default_hooks.checkpoint.update(save_best=keys, rule='less')
    taught.val_evaluator = [
        dict(type='Accuracy', topk=(1, )),
        dict(type='SingleLabelMetric', num_classes=10, items=['f1-score'])]
    info = train(taught).message_hub.get_info
    for key in keys:
        best = Path(info(f'best_ckpt_{key}')).with_suffix('')
        metrics = read_checkpoint(f'{best}_student.pth')['meta']['metrics']
        assert metrics[key] == info(f'best_score_{key}')


class FullDisk(Hook):
    """No file may grow beyond 64 kB from the second epoch's start on."""

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 1:
            fill_disk()


def fill_disk() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))


@contextmanager
def unlimited_afterwards() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_costs_nothing(taught: Config) -> None:
    taught.default_hooks.checkpoint.update(max_keep_ckpts=1, save_best='auto')
    taught.train_cfg.max_epochs = 2
    work_dir = Path(taught.work_dir)
    with unlimited_afterwards(), pytest.raises(
            OSError, match=str(work_dir / 'epoch_2.pth')):
        train(taught, FullDisk())
    # As the first epoch left it, but for the config and the logs.
    assert names(work_dir, 'epoch') == {
        f'{best}epoch_1{kind}.pth'
        for best in ('', 'best_accuracy_top1_') for kind in ('', '_student')}
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert train(taught, resume=True).epoch == 2
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_2.pth')


def test_previous_best_outlives_a_failure(taught: Config) -> None:
    taught.default_hooks.checkpoint.update(save_best='auto', rule='greater')
    runner = train(taught)
    hook = next(hook for hook in runner.hooks
                if isinstance(hook, DistillCheckpointHook))
    best = Path(runner.message_hub.get_info('best_ckpt'))
    before = best.read_bytes()
    runner.train_loop._epoch = 2
    with unlimited_afterwards(), pytest.raises(OSError, match='epoch_2'):
        fill_disk()
        hook.after_val_epoch(runner, {'accuracy/top1': 101.0})
    assert best.read_bytes() == before
    # And goes when the next one has come.
    hook.best_ckpt_path = str(best)

    def write(path: str, write: Callable = hook._write_student) -> None:
        assert 'best' not in path or best.exists()
        write(path)

    hook._write_student = write
    hook.after_val_epoch(runner, {'accuracy/top1': 102.0})
    assert names(best.parent, 'best') == {
        'best_accuracy_top1_epoch_2.pth',
        'best_accuracy_top1_epoch_2_student.pth'}
