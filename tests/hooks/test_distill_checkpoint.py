"""DistillCheckpointHook: what its file leaves out, and what resumes it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from short_runs import again, check_equal, names, save_teacher, saved, train

from wsld_plugin.checkpoints import (
    CheckpointMismatchError,
    read_checkpoint,
    student_model,
)

WRITER = 'default_hooks.checkpoint.type'


@pytest.mark.parametrize('norm_eval, torchvision', [
    (True, False), (False, False), (True, True)])
def test_what_the_file_holds_is_left_out(taught: Config, norm_eval: bool,
                                         torchvision: bool) -> None:
    if torchvision:
        weights = read_checkpoint(taught.model.teacher_ckpt)['state_dict']
        torch.save({key.partition('.')[2]: value
                    for key, value in weights.items()},
                   taught.model.teacher_ckpt)
    taught.model.teacher_norm_eval = norm_eval
    model = train(taught).model.state_dict()
    kept = {key: value for key, value in saved(taught)['state_dict'].items()
            if key.startswith('teacher.')}
    assert {key.rpartition('.')[2] for key in kept} == (
        set() if norm_eval else
        {'running_mean', 'running_var', 'num_batches_tracked'})
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
def test_resumed_run_ends_as_mmengines_own(taught: Config, tmp_path: Path,
                                           fields: dict[str, Any]) -> None:
    taught.merge_from_dict(fields)
    theirs = again(taught, work_dir=str(tmp_path / 'theirs'), **{
        WRITER: 'CheckpointHook', 'train_cfg.max_epochs': 2})
    expected = train(theirs).model.state_dict()
    train(taught)
    # Another name of the same file.
    renamed = Path(taught.model.teacher_ckpt).replace(tmp_path / 'moved.pth')
    runner = train(taught, resume=True, **{
        'train_cfg.max_epochs': 2, 'model.teacher_ckpt': str(renamed)})
    check_equal(runner.model.state_dict(), expected)
    ours, whole = saved(taught, 2), saved(theirs, 2)
    check_equal(ours['optimizer'], whole['optimizer'])
    for state in {'state_dict', 'ema_state_dict'} & (ours.keys()
                                                     | whole.keys()):
        # Less than mmengine saves, and nothing that differs.
        assert (len(ours[state]) < len(whole[state])) == (
            'strict_load' not in str(fields))
        check_equal(ours[state], {
            key: value for key, value in whole[state].items()
            if key in ours[state] or 'teacher.' not in key})


@pytest.mark.parametrize('writer, resume, teacher, said', [
    ('DistillCheckpointHook', True, True,
     'another teacher: .*teacher_ckpt={other}'),
    ('DistillCheckpointHook', True, False, 'lacks the teacher'),
    ('DistillCheckpointHook', False, False, 'lacks the teacher'),
    # A file with all of the teacher.
    ('CheckpointHook', True, True,
     '{file} was made with another teacher than {other}'),
])
def test_another_teacher_is_refused(taught: Config, tmp_path: Path,
                                    writer: str, resume: bool, teacher: bool,
                                    said: str) -> None:
    train(taught, **{WRITER: writer})
    other = save_teacher(taught, tmp_path / 'other.pth', seed=1)
    file = f'{taught.work_dir}/epoch_1.pth'
    with pytest.raises(CheckpointMismatchError,
                       match=said.format(file=file, other=other)):
        train(taught, resume=resume, load_from=file,
              **{'model.teacher_ckpt': other if teacher else None})


class AtStart(Hook):
    """Keeps the weights with which a training starts."""

    def before_train(self, runner: Runner) -> None:
        self.weights = {key: value.clone()
                        for key, value in runner.model.state_dict().items()}


@pytest.mark.parametrize('writer', ['DistillCheckpointHook', 'CheckpointHook'])
@pytest.mark.parametrize('way', ['teacher_ckpt', 'init_cfg', 'the same'])
def test_second_stage_has_its_own_teacher(taught: Config, tmp_path: Path,
                                          writer: str, way: str) -> None:
    expected = train(taught, **{WRITER: writer}).model.state_dict()
    other = save_teacher(taught, tmp_path / 'other.pth', seed=1)
    fields: dict[str, Any] = {
        'teacher_ckpt': {'model.teacher_ckpt': other},
        'init_cfg': {
            'model.teacher_ckpt': None,
            'model.teacher.init_cfg': dict(
                type='Pretrained', checkpoint=other)},
    }.get(way, {})
    start = AtStart()
    train(taught, start, load_from=f'{taught.work_dir}/epoch_1.pth',
          work_dir=str(tmp_path / 'second'), **fields)
    log, = (tmp_path / 'second').glob('*/*.log')
    warned = f'left there: {fields.get("model.teacher_ckpt") or "the config"}'
    assert (warned in log.read_text()) == bool(fields)
    if fields:
        others = read_checkpoint(other)['state_dict']
        expected.update((f'teacher.{key}', others[key]) for key in others)
    check_equal(start.weights, dict(expected))


def test_a_test_needs_no_teacher(taught: Config,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    before = train(taught).model.architecture.state_dict()
    Path(taught.model.teacher_ckpt).unlink()
    capsys.readouterr()
    for path in (taught.model.teacher_ckpt, None):
        runner = Runner.from_cfg(again(
            taught, load_from=f'{taught.work_dir}/epoch_1.pth',
            **{'model.teacher_ckpt': path, 'test_dataloader.num_workers': 0}))
        assert 'accuracy/top1' in runner.test()
        check_equal(runner.model.architecture.state_dict(), before)
    assert 'do not match' not in capsys.readouterr().out
    # But a training does, whatever hooks it has.
    with pytest.raises(FileNotFoundError, match=r'model\.teacher_ckpt=.*pth'):
        train(taught, **{WRITER: 'CheckpointHook'})


@pytest.mark.parametrize('distilled', [True, False])
def test_a_students_file_is_not_resumed(taught: Config,
                                        distilled: bool) -> None:
    train(taught)
    student = f'{taught.work_dir}/epoch_1_student.pth'
    if not distilled:
        taught.model = student_model(taught.model)
    for resume in (True, False) if distilled else (True, ):
        with pytest.raises(CheckpointMismatchError) as error:
            train(taught, load_from=student, resume=resume)
        said = str(error.value)
        assert said.startswith(f'{student} holds the student alone, and no '
                               'training: resume from epoch_1.pth')
        assert '\n' not in said
    if not distilled:
        train(taught, load_from=student)


@pytest.mark.parametrize('fields', [
    {'model.teacher_ckpt': None},
    {'model.teacher_trainable': True},
])
def test_teacher_that_no_file_holds_is_saved(taught: Config,
                                             fields: dict[str, Any]) -> None:
    runner = train(taught, **fields)
    check_equal(saved(taught)['state_dict'], dict(runner.model.state_dict()))


def test_classifier_is_saved_as_by_mmengine(taught: Config,
                                            tmp_path: Path) -> None:
    taught.model = student_model(taught.model)
    train(taught)
    theirs = again(taught, work_dir=str(tmp_path / 'theirs'),
                   **{WRITER: 'CheckpointHook'})
    train(theirs)
    assert names(Path(taught.work_dir)) == names(Path(theirs.work_dir))
    ours, whole = saved(taught), saved(theirs)
    assert ours.keys() == whole.keys()
    assert ours['meta'].keys() == whole['meta'].keys()
    check_equal(ours['state_dict'], whole['state_dict'])
