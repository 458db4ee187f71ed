"""DistillCheckpointHook: what it leaves out, adds, keeps and survives."""
from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmpretrain import get_model
from torch import Tensor

from wsld_plugin import compat
from wsld_plugin.checkpoints import (
    CheckpointMismatchError,
    export_student,
    read_checkpoint,
    student_model,
    write_atomically,
)
from wsld_plugin.hooks import DistillCheckpointHook

Trained = Callable[..., Runner]
NOBODY = 65534


@pytest.fixture
def config(tiny_config: Config, tmp_path: Path) -> Config:
    """The tiny distillation with a teacher from a file that changes."""
    tiny_config.model.teacher_ckpt = save_teacher(
        tiny_config, tmp_path / 'teacher.pth')
    tiny_config.model.teacher_norm_eval = False
    tiny_config.work_dir = str(tmp_path / 'run')
    return tiny_config


def save_teacher(cfg: Config, path: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(cfg.model.teacher)
    torch.save(dict(state_dict=teacher.state_dict()), path)
    return str(path)


def again(cfg: Config, **fields: Any) -> Config:
    """The same config for another run; mmengine keeps state by name."""
    cfg = cfg.copy()
    cfg.merge_from_dict(fields)
    compat.prepare_amp(cfg)
    again.runs += 1  # type: ignore[attr-defined]
    cfg.experiment_name = (
        f'{cfg.experiment_name}_{again.runs}')  # type: ignore[attr-defined]
    return cfg


again.runs = 0  # type: ignore[attr-defined]


def of_teacher(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in weights.items()
        if key.startswith(('teacher.', 'module.teacher.'))
    }


def check_equal(ours: Any, theirs: Any, where: str = '') -> None:
    """Compare nested states bit by bit."""
    if isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in theirs.items():
            check_equal(ours[key], value, f'{where}/{key}')
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for number, value in enumerate(theirs):
            check_equal(ours[number], value, f'{where}/{number}')
    else:
        assert ours == theirs, where


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(('norm_eval', 'torchvision'), [
    (True, False),
    (False, False),
    (True, True),
])
def test_what_the_file_holds_is_left_out(config: Config, trained: Trained,
                                         norm_eval: bool,
                                         torchvision: bool) -> None:
    if torchvision:
        weights = read_checkpoint(config.model.teacher_ckpt)['state_dict']
        torch.save({
            key.partition('.')[2]: value
            for key, value in weights.items()
        }, config.model.teacher_ckpt)
    config.model.teacher_norm_eval = norm_eval
    runner = trained(config)
    path = Path(config.work_dir, 'epoch_1.pth')
    kept = of_teacher(read_checkpoint(str(path))['state_dict'])
    if norm_eval:
        assert kept == {}
    else:
        assert {key.rpartition('.')[2]
                for key in kept} == {
                    'running_mean', 'running_var', 'num_batches_tracked'
                }
        check_equal(kept, {
            key: value
            for key, value in runner.model.state_dict().items() if key in kept
        })


@pytest.mark.parametrize(
    'fields', [
        dict(),
        dict(custom_hooks=[dict(type='EMAHook')]),
        dict(custom_hooks=[dict(type='EMAHook', update_buffers=True)]),
        dict(custom_hooks=[dict(type='EMAHook', strict_load=True)]),
        dict(optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16')),
    ],
    ids=['plain', 'ema', 'ema-buffers', 'ema-strict', 'amp'])
def test_resumed_run_ends_as_mmengines_own(config: Config, trained: Trained,
                                           tmp_path: Path,
                                           fields: dict[str, Any]) -> None:
    theirs = again(config, work_dir=str(tmp_path / 'theirs'), **fields)
    theirs.default_hooks.checkpoint.type = 'CheckpointHook'
    theirs.train_cfg.max_epochs = 2
    expected = trained(theirs)

    trained(again(config, **fields))
    # Another name of the same file.
    renamed = Path(config.model.teacher_ckpt).replace(tmp_path / 'moved.pth')
    runner = trained(
        again(
            config, **fields, **{
                'resume': True,
                'train_cfg.max_epochs': 2,
                'model.teacher_ckpt': str(renamed)
            }))
    check_equal(runner.model.state_dict(), expected.model.state_dict())
    ours, whole = (
        read_checkpoint(f'{folder}/epoch_2.pth')
        for folder in (config.work_dir, theirs.work_dir))
    for state in ('state_dict', 'ema_state_dict'):
        # Less than mmengine saves, and nothing that differs.
        assert (state in ours) == (state in whole)
        check_equal(
            ours.get(state, {}), {
                key: value
                for key, value in whole.get(state, {}).items()
                if key in ours[state]
            })
        absent = whole.get(state, {}).keys() - ours.get(state, {}).keys()
        assert all('teacher.' in key for key in absent)
    check_equal(ours['optimizer'], whole['optimizer'])


def test_another_teacher_is_refused(config: Config, trained: Trained,
                                    tmp_path: Path) -> None:
    trained(config)
    other = save_teacher(config, tmp_path / 'other.pth', seed=1)
    with pytest.raises(
            CheckpointMismatchError,
            match=rf'another teacher: .*teacher_ckpt={other}'):
        trained(
            again(config, **{
                'resume': True,
                'model.teacher_ckpt': other
            }))
    with pytest.raises(CheckpointMismatchError, match='lacks the teacher'):
        trained(
            again(config, **{
                'resume': True,
                'model.teacher_ckpt': None
            }))


@pytest.mark.parametrize('fields', [
    {'model.teacher_ckpt': None},
    {'model.teacher_trainable': True},
])
def test_teacher_that_no_file_holds_is_saved(config: Config, trained: Trained,
                                             fields: dict[str, Any]) -> None:
    runner = trained(again(config, **fields))
    saved = read_checkpoint(f'{config.work_dir}/epoch_1.pth')
    check_equal(saved['state_dict'], dict(runner.model.state_dict()))


def test_weights_that_the_file_lacks_are_saved(config: Config,
                                               trained: Trained) -> None:
    path = config.model.teacher_ckpt
    weights = read_checkpoint(path)['state_dict']
    del weights['head.fc.weight']
    torch.save(dict(state_dict=weights), path)
    # It would refuse such a file.
    config.custom_hooks = []
    config.model.teacher_norm_eval = True
    trained(config)
    saved = read_checkpoint(f'{config.work_dir}/epoch_1.pth')
    assert list(of_teacher(saved['state_dict'])) == ['teacher.head.fc.weight']


@pytest.mark.parametrize('averaged', [False, True])
def test_student_beside_the_checkpoint(config: Config, trained: Trained,
                                       tmp_path: Path,
                                       averaged: bool) -> None:
    if averaged:
        config.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    config.default_hooks.checkpoint.save_best = 'auto'
    trained(config)
    work_dir = Path(config.work_dir)
    for name in ('epoch_1', 'best_accuracy_top1_epoch_1'):
        path = work_dir / f'{name}_student.pth'
        model = get_model(
            Config(dict(model=student_model(config.model), **{
                'default_scope': 'mmpretrain'
            })),
            pretrained=str(path))
        student = read_checkpoint(str(path))
        assert set(student) == {'state_dict', 'meta'}
        model.load_state_dict(student['state_dict'], strict=True)
        # What was exported with the tool before is the same.
        exported = export_student(
            str(work_dir / f'{name}.pth'), f'{tmp_path}/{name}')
        again_out = export_student(str(path), f'{tmp_path}/{name}_again')
        check_equal(
            dict(student['state_dict']),
            dict(read_checkpoint(str(exported.path))['state_dict']))
        assert exported.averaged == again_out.averaged == averaged
        meta = student['meta']
        assert meta['averaged'] == averaged
        assert meta['source'] == f'{name}.pth'
        assert meta['epoch'] == 1
        assert len(meta['dataset_meta']['classes']) == 10
        assert meta['torch_version'] == torch.__version__
        assert Config.fromstring(meta['cfg'], '.py').model.type == (
            'ImageClassifier')
        metrics = read_checkpoint(str(again_out.path))['meta']['metrics']
        assert 0 <= metrics['accuracy/top1'] <= 100


@pytest.mark.parametrize('by_epoch', [True, False])
def test_students_go_with_their_checkpoints(config: Config, trained: Trained,
                                            by_epoch: bool) -> None:
    unit = 'epoch' if by_epoch else 'iter'
    config.default_hooks.checkpoint.update(
        by_epoch=by_epoch, interval=1, max_keep_ckpts=2, save_best='auto')
    config.train_cfg = dict(
        by_epoch=by_epoch, val_interval=1, **{f'max_{unit}s': 3})
    config.default_hooks.logger.log_metric_by_epoch = by_epoch
    work_dir = Path(config.work_dir)
    runner = trained(again(config))
    saved = {name for name in names(work_dir) if name.endswith('.pth')}
    best = Path(runner.message_hub.get_info('best_ckpt')).stem
    assert saved == {
        f'{name}{kind}.pth'
        for name in (f'{unit}_2', f'{unit}_3', best)
        for kind in ('', '_student')
    }
    assert (work_dir / 'last_checkpoint').read_text() == str(
        work_dir / f'{unit}_3.pth')
    # Fewer are kept from now on; a killed process left a part of a file.
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    (work_dir / f'{unit}_4.pth.{NOBODY}.part').touch()
    trained(again(config, resume=True))
    assert {name for name in names(work_dir)
            if name.startswith((unit, 'last'))} == {
                f'{unit}_3.pth', f'{unit}_3_student.pth', 'last_checkpoint'
            }


def test_metrics_decide_between_several_best(config: Config, trained: Trained,
                                             tmp_path: Path) -> None:
    config.default_hooks.checkpoint.update(
        save_best=['accuracy/top1', 'single-label/f1-score'], rule='less')
    config.val_evaluator = [
        dict(type='Accuracy', topk=(1, )),
        dict(type='SingleLabelMetric', num_classes=10, items=['f1-score']),
    ]
    runner = trained(config)
    for key in config.default_hooks.checkpoint.save_best:
        best = Path(runner.message_hub.get_info(f'best_ckpt_{key}'))
        metrics = read_checkpoint(
            f'{best.with_suffix("")}_student.pth')['meta']['metrics']
        assert metrics[key] == runner.message_hub.get_info(
            f'best_score_{key}')


def test_classifier_is_saved_as_by_mmengine(config: Config, trained: Trained,
                                            tmp_path: Path) -> None:
    config.model = student_model(config.model)
    config.custom_hooks = []
    trained(config)
    theirs = again(config, work_dir=str(tmp_path / 'theirs'))
    theirs.default_hooks.checkpoint.type = 'CheckpointHook'
    trained(theirs)
    assert names(Path(config.work_dir)) == names(Path(theirs.work_dir))
    ours, whole = (
        read_checkpoint(f'{folder}/epoch_1.pth')
        for folder in (config.work_dir, theirs.work_dir))
    assert ours.keys() == whole.keys()
    assert ours['meta'].keys() == whole['meta'].keys()
    check_equal(ours['state_dict'], whole['state_dict'])


class FullDisk(Hook):
    """No file may grow beyond 64 kB from the second epoch's end on."""

    priority = 'VERY_HIGH'

    def after_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 1:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))


@contextmanager
def unlimited_afterwards() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_costs_nothing(config: Config, trained: Trained) -> None:
    config.default_hooks.checkpoint.update(max_keep_ckpts=1, save_best='auto')
    config.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(again(config))
    runner.register_hook(FullDisk())
    work_dir = Path(config.work_dir)
    with unlimited_afterwards(), pytest.raises(
            OSError, match=str(work_dir / 'epoch_2.pth')):
        runner.train()
    # As the first epoch left it, but for the config and the logs.
    assert names(work_dir) >= {
        'epoch_1.pth', 'epoch_1_student.pth', 'last_checkpoint',
        'best_accuracy_top1_epoch_1.pth',
        'best_accuracy_top1_epoch_1_student.pth'
    }
    assert not any('epoch_2' in name for name in names(work_dir))
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    resumed = trained(again(config, resume=True))
    assert resumed.epoch == 2
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_2.pth')


def test_previous_best_outlives_a_failure(config: Config,
                                          trained: Trained) -> None:
    config.default_hooks.checkpoint.update(save_best='auto', rule='greater')
    runner = trained(config)
    hook = next(hook for hook in runner.hooks
                if isinstance(hook, DistillCheckpointHook))
    best = Path(runner.message_hub.get_info('best_ckpt'))
    before = best.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    runner.train_loop._epoch = 2
    with unlimited_afterwards(), pytest.raises(OSError, match='epoch_2'):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        hook.after_val_epoch(runner, {'accuracy/top1': 101.0})
    assert best.read_bytes() == before
    # And goes when the next one has come.
    hook.best_ckpt_path = str(best)
    hook.after_val_epoch(runner, {'accuracy/top1': 102.0})
    assert not best.exists()
    assert not best.with_name(f'{best.stem}_student.pth').exists()
    assert {name for name in names(best.parent) if 'best' in name} == {
        'best_accuracy_top1_epoch_2.pth',
        'best_accuracy_top1_epoch_2_student.pth'
    }


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Forbid to write in a folder, to root too."""
    user = os.geteuid()
    folder.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_read_only_folder_keeps_what_it_has() -> None:
    # Not below tmp_path, which is closed to all but its owner.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, 'epoch_1.pth')
        write_atomically(path, b'old')
        with read_only(Path(name)), pytest.raises(
                PermissionError, match=str(path)):
            write_atomically(path, b'new')
        assert path.read_bytes() == b'old'
        assert names(Path(name)) == {'epoch_1.pth'}
        write_atomically(path, b'new')
        assert path.read_bytes() == b'new'
