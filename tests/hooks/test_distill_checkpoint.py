"""DistillCheckpointHook: what it leaves out, adds, keeps and survives."""
from __future__ import annotations

import itertools
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import FileClient, LocalBackend
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
)
from wsld_plugin.hooks import DistillCheckpointHook

Trained = Callable[..., Runner]
EMA = [dict(type='EMAHook', momentum=0.5)]


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


RUNS = itertools.count()


def again(cfg: Config, *changes: dict[str, Any], **fields: Any) -> Config:
    """The same config for another run; mmengine keeps state by name."""
    cfg = deepcopy(cfg)
    for change in (*changes, fields):
        cfg.merge_from_dict(change)
    compat.prepare_amp(cfg)
    cfg.experiment_name += f'_{next(RUNS)}'
    return cfg


def saved(cfg: Config, epoch: int = 1) -> dict[str, Any]:
    return read_checkpoint(f'{cfg.work_dir}/epoch_{epoch}.pth')


def of_teacher(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in weights.items() if key.startswith('teacher.')
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
        check_equal(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    else:
        assert ours == theirs, where


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize('norm_eval, torchvision', [(True, False),
                                                    (False, False),
                                                    (True, True)])
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
    kept = of_teacher(saved(config)['state_dict'])
    assert {key.rpartition('.')[2] for key in kept} == (
        set() if norm_eval else
        {'running_mean', 'running_var', 'num_batches_tracked'})
    model = runner.model.state_dict()
    check_equal(kept, {key: model[key] for key in kept})


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
    theirs = again(config, fields, work_dir=str(tmp_path / 'theirs'))
    theirs.default_hooks.checkpoint.type = 'CheckpointHook'
    theirs.train_cfg.max_epochs = 2
    expected = trained(theirs)

    trained(again(config, fields))
    # Another name of the same file.
    renamed = Path(config.model.teacher_ckpt).replace(tmp_path / 'moved.pth')
    runner = trained(
        again(config, fields, {'train_cfg.max_epochs': 2,
                               'model.teacher_ckpt': str(renamed)},
              resume=True))
    check_equal(runner.model.state_dict(), expected.model.state_dict())
    ours, whole = saved(config, 2), saved(theirs, 2)
    check_equal(ours['optimizer'], whole['optimizer'])
    for state in {'state_dict', 'ema_state_dict'} & (ours.keys()
                                                     | whole.keys()):
        # Less than mmengine saves, and nothing that differs.
        check_equal(
            ours[state], {
                key: value
                for key, value in whole[state].items()
                if key in ours[state] or 'teacher.' not in key
            })


@pytest.mark.parametrize('writer, resume, teacher, said', [
    ('DistillCheckpointHook', True, True,
     'another teacher: .*teacher_ckpt={other}'),
    ('DistillCheckpointHook', True, False, 'lacks the teacher'),
    ('DistillCheckpointHook', False, False, 'lacks the teacher'),
    # A file with all of the teacher.
    ('CheckpointHook', True, True,
     '{file} was made with another teacher than {other}'),
])
def test_another_teacher_is_refused(config: Config, trained: Trained,
                                    tmp_path: Path, writer: str, resume: bool,
                                    teacher: bool, said: str) -> None:
    trained(again(config, {'default_hooks.checkpoint.type': writer}))
    other = save_teacher(config, tmp_path / 'other.pth', seed=1)
    file = f'{config.work_dir}/epoch_1.pth'
    with pytest.raises(CheckpointMismatchError,
                       match=said.format(file=file, other=other)):
        trained(
            again(config, {'model.teacher_ckpt': other if teacher else None},
                  resume=resume, load_from=file))


class AtStart(Hook):
    """Keeps the weights with which a training starts."""

    def before_train(self, runner: Runner) -> None:
        self.weights = {
            key: value.clone()
            for key, value in runner.model.state_dict().items()
        }


@pytest.mark.parametrize('writer', ['DistillCheckpointHook', 'CheckpointHook'])
@pytest.mark.parametrize('way', ['teacher_ckpt', 'init_cfg', 'the same'])
def test_second_stage_has_its_own_teacher(config: Config, trained: Trained,
                                          tmp_path: Path, writer: str,
                                          way: str) -> None:
    first = again(config, {'default_hooks.checkpoint.type': writer})
    expected = trained(first).model.state_dict()
    other = save_teacher(config, tmp_path / 'other.pth', seed=1)
    fields: dict[str, Any] = {
        'teacher_ckpt': {'model.teacher_ckpt': other},
        'init_cfg': {
            'model.teacher_ckpt': None,
            'model.teacher.init_cfg': dict(
                type='Pretrained', checkpoint=other)
        },
    }.get(way, {})
    start = AtStart()
    trained(
        again(config, fields, load_from=f'{config.work_dir}/epoch_1.pth',
              work_dir=str(tmp_path / 'second')), start)
    log, = (tmp_path / 'second').glob('*/*.log')
    warned = f'left there: {fields.get("model.teacher_ckpt") or "the config"}'
    assert (warned in log.read_text()) == bool(fields)
    if fields:
        others = read_checkpoint(other)['state_dict']
        expected.update((f'teacher.{key}', others[key]) for key in others)
    check_equal(start.weights, dict(expected))


def test_a_test_needs_no_teacher(config: Config, trained: Trained,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    before = trained(config).model.architecture.state_dict()
    Path(config.model.teacher_ckpt).unlink()
    capsys.readouterr()
    for path in (config.model.teacher_ckpt, None):
        runner = Runner.from_cfg(
            again(config, {'model.teacher_ckpt': path,
                           'test_dataloader.num_workers': 0},
                  load_from=f'{config.work_dir}/epoch_1.pth'))
        assert 'accuracy/top1' in runner.test()
        check_equal(runner.model.architecture.state_dict(), before)
    assert 'do not match' not in capsys.readouterr().out
    # But a training does, whatever hooks it has.
    with pytest.raises(FileNotFoundError, match=r'model\.teacher_ckpt=.*pth'):
        trained(again(config, {
            'default_hooks.checkpoint.type': 'CheckpointHook'}))


@pytest.mark.parametrize('distilled', [True, False])
def test_a_students_file_is_not_resumed(config: Config, trained: Trained,
                                        distilled: bool) -> None:
    trained(config)
    student = f'{config.work_dir}/epoch_1_student.pth'
    if not distilled:
        config.model = student_model(config.model)
        config.custom_hooks = []
    for resume in (True, False) if distilled else (True, ):
        with pytest.raises(CheckpointMismatchError) as error:
            trained(again(config, load_from=student, resume=resume))
        said = str(error.value)
        assert said.startswith(f'{student} holds the student alone, and no '
                               'training: resume from epoch_1.pth')
        assert '\n' not in said
    if not distilled:
        trained(again(config, load_from=student))


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
        if 'accuracy/top1' in line
    }
    info = runner.message_hub.runtime_info
    students = {
        path.name: read_checkpoint(str(path))['meta']['metrics']
        for path in folder.glob('*_student.pth')
    }
    return ({name for name in names(folder) if name.endswith('.pth')},
            validations, info['best_score'], Path(info['best_ckpt']).name,
            students)


@pytest.mark.parametrize('unit', ['epoch', 'iter'])
@pytest.mark.parametrize('killed', [1, 2, 3])
@pytest.mark.parametrize('rule', ['greater', 'less'])
def test_a_cut_validation_is_made_up(config: Config, trained: Trained,
                                     tmp_path: Path, unit: str, killed: int,
                                     rule: str) -> None:
    by_epoch = unit == 'epoch'
    config.default_hooks.checkpoint.update(
        by_epoch=by_epoch, interval=1, save_best='accuracy/top1', rule=rule)
    config.train_cfg = dict(
        by_epoch=by_epoch, val_interval=1, **{f'max_{unit}s': 3})
    config.default_hooks.logger.log_metric_by_epoch = by_epoch
    whole = again(config, work_dir=str(tmp_path / 'whole'))
    expected = state_of(trained(whole), tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        trained(again(config), KilledAtValidation(killed))
    resumed = trained(again(config, resume=True))
    assert resumed.epoch == 3 or resumed.iter == 3
    got = state_of(resumed, Path(config.work_dir))
    assert len(got[1]) == 3
    if by_epoch or killed == 3:
        assert got == expected


def test_the_best_is_not_validated_again(config: Config, trained: Trained,
                                         tmp_path: Path) -> None:
    config.default_hooks.checkpoint.save_best = 'accuracy/top1'
    trained(config)
    watch = KilledAtValidation(1)
    assert trained(again(config, resume=True), watch).epoch == 1


@pytest.mark.parametrize('fields', [
    {'model.teacher_ckpt': None},
    {'model.teacher_trainable': True},
])
def test_teacher_that_no_file_holds_is_saved(config: Config, trained: Trained,
                                             fields: dict[str, Any]) -> None:
    runner = trained(again(config, fields))
    check_equal(saved(config)['state_dict'], dict(runner.model.state_dict()))


@pytest.mark.parametrize('averaged', [False, True])
def test_student_beside_the_checkpoint(config: Config, trained: Trained,
                                       tmp_path: Path,
                                       averaged: bool) -> None:
    if averaged:
        config.custom_hooks = EMA
    config.default_hooks.checkpoint.save_best = 'auto'
    trained(config)
    work_dir = Path(config.work_dir)
    for name in ('epoch_1', 'best_accuracy_top1_epoch_1'):
        path = work_dir / f'{name}_student.pth'
        alone = Config(dict(model=student_model(config.model),
                            default_scope='mmpretrain'))
        model = get_model(alone, pretrained=str(path))
        student = torch.load(path)
        assert set(student) == {'state_dict', 'meta'}
        model.load_state_dict(student['state_dict'], strict=True)
        # EMAHook's average is where the model was.
        assert {one.device.type
                for one in student['state_dict'].values()} == {'cpu'}
        # What was exported with the tool before is the same.
        for number, source in enumerate((work_dir / f'{name}.pth', path)):
            out = export_student(str(source), f'{tmp_path}/{name}{number}')
            assert out.averaged == averaged
            check_equal(
                dict(student['state_dict']),
                dict(read_checkpoint(str(out.path))['state_dict']))
        meta = student['meta']
        assert meta['averaged'] == averaged
        assert meta['source'] == f'{name}.pth'
        assert meta['epoch'] == 1
        assert len(meta['dataset_meta']['classes']) == 10
        assert Config.fromstring(meta['cfg'], '.py').model.type == (
            'ImageClassifier')
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


@pytest.mark.parametrize('by_epoch, client', [
    (True, None),
    (False, None),
    (True, dict(backend='shouting')),
])
def test_students_go_with_their_checkpoints(
        config: Config, trained: Trained, by_epoch: bool,
        client: dict[str, str] | None) -> None:
    unit = 'epoch' if by_epoch else 'iter'
    config.default_hooks.checkpoint.update(
        by_epoch=by_epoch, interval=1, max_keep_ckpts=2, save_best='auto',
        file_client_args=client)
    config.train_cfg = dict(
        by_epoch=by_epoch, val_interval=1, **{f'max_{unit}s': 3})
    config.default_hooks.logger.log_metric_by_epoch = by_epoch
    work_dir = Path(config.work_dir)
    there = work_dir / 'THERE' if client == dict(
        backend='shouting') else work_dir
    runner = trained(again(config))
    best = Path(runner.message_hub.get_info('best_ckpt')).stem
    assert {name for name in names(there) if name.endswith('.pth')} == {
        f'{name}{kind}.pth'
        for name in (f'{unit}_2', f'{unit}_3', best)
        for kind in ('', '_student')
    }
    last = work_dir / 'last_checkpoint'
    assert last.read_text() == str(work_dir / f'{unit}_3.pth')
    if there != work_dir:
        last.write_text(str(there / f'{unit}_3.pth'))
    # Fewer are kept from now on; a killed process left a part of a file.
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    part = work_dir / f'{unit}_4.pth.65534.part'
    part.touch()
    trained(again(config, resume=True))
    assert {name for name in names(there) if name.startswith(unit)} == {
        f'{unit}_3.pth', f'{unit}_3_student.pth'
    } | ({part.name} if there == work_dir and part.exists() else set())
    assert part.exists() == (there != work_dir)


def test_metrics_decide_between_several_best(config: Config,
                                             trained: Trained) -> None:
    keys = ['accuracy/top1', 'single-label/f1-score']
    config.default_hooks.checkpoint.update(save_best=keys, rule='less')
    config.val_evaluator = [
        dict(type='Accuracy', topk=(1, )),
        dict(type='SingleLabelMetric', num_classes=10, items=['f1-score']),
    ]
    info = trained(config).message_hub.get_info
    for key in keys:
        best = Path(info(f'best_ckpt_{key}')).with_suffix('')
        metrics = read_checkpoint(f'{best}_student.pth')['meta']['metrics']
        assert metrics[key] == info(f'best_score_{key}')


def test_classifier_is_saved_as_by_mmengine(config: Config, trained: Trained,
                                            tmp_path: Path) -> None:
    config.model = student_model(config.model)
    config.custom_hooks = []
    trained(config)
    theirs = again(config, work_dir=str(tmp_path / 'theirs'))
    theirs.default_hooks.checkpoint.type = 'CheckpointHook'
    trained(theirs)
    assert names(Path(config.work_dir)) == names(Path(theirs.work_dir))
    ours, whole = saved(config), saved(theirs)
    assert ours.keys() == whole.keys()
    assert ours['meta'].keys() == whole['meta'].keys()
    check_equal(ours['state_dict'], whole['state_dict'])


class FullDisk(Hook):
    """No file may grow beyond 64 kB from the second epoch's end on."""

    priority = 'VERY_HIGH'

    def after_train_epoch(self, runner: Runner) -> None:
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
    assert {name for name in names(work_dir) if 'epoch' in name} == {
        f'{best}epoch_1{kind}.pth'
        for best in ('', 'best_accuracy_top1_') for kind in ('', '_student')
    }
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    assert trained(again(config, resume=True)).epoch == 2
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_2.pth')


def test_previous_best_outlives_a_failure(config: Config,
                                          trained: Trained) -> None:
    config.default_hooks.checkpoint.update(save_best='auto', rule='greater')
    runner = trained(config)
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
    hook.after_val_epoch(runner, {'accuracy/top1': 102.0})
    assert {name for name in names(best.parent) if 'best' in name} == {
        'best_accuracy_top1_epoch_2.pth',
        'best_accuracy_top1_epoch_2_student.pth'
    }
