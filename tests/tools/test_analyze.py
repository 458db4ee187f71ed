"""tools/analyze.py on tiny trainings: results, kill and resume, mistakes."""
from __future__ import annotations

import csv
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / 'tools'
DISTILLATION = HERE / 'tiny_distillation.py'
STUDENT = HERE / 'tiny_student.py'
# The student's training, tiny.
SHORT = ('--cfg-options', 'train_cfg.max_epochs=1',
         'train_dataloader.dataset.indices=20',
         'train_dataloader.batch_size=5',
         'val_dataloader.dataset.indices=20',
         'test_dataloader.dataset.indices=20')

Call = Callable[..., None]


@pytest.fixture(scope='module')
def trained(call_tool: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work dir of two epochs of a distillation."""
    work_dir = tmp_path_factory.mktemp('trained') / 'wsld_seed0'
    call_tool('train.py', DISTILLATION, '--work-dir', work_dir,
              '--cfg-options', 'train_cfg.max_epochs=2',
              'train_dataloader.num_workers=0',
              'train_dataloader.dataset.indices=32',
              'val_dataloader.dataset.indices=20')
    return work_dir


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_regularization(trained: Path, call_tool: Call, tmp_path: Path,
                        capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'results'
    call_tool('analyze.py', 'regularization', DISTILLATION,
              trained / 'epoch_1.pth', trained / 'epoch_2_student.pth',
              '--split', 'train', '--out', out, '--cfg-options',
              'train_dataloader.dataset.indices=30',
              f'model.teacher_ckpt={teacher(trained, tmp_path)}')
    assert 'Regularization samples, train' in capsys.readouterr().out
    samples = rows(out / 'samples.csv')
    assert len(samples) == 2 * 30
    assert [row['sample'] for row in samples[:3]] == ['0', '1', '2']
    assert {row['checkpoint'] for row in samples} == {'epoch 1', 'epoch 2'}
    # The teacher is the same at both, the student is not.
    first, second = samples[:30], samples[30:]
    for one, other in zip(first, second):
        assert one['ce_teacher'] == other['ce_teacher']
        assert one['ce_student'] != other['ce_student']
        assert float(one['weight']) == pytest.approx(
            1 - np.exp(-float(one['ce_student']) / float(one['ce_teacher'])),
            abs=1e-5)
    classes = rows(out / 'classes.csv')
    assert len(classes) == 20
    assert [row['samples'] for row in classes] == 20 * ['3']
    for name, part in (('epoch 1', first), ('epoch 2', second)):
        count = sum(int(row['regularization']) for row in part)
        assert count == sum(
            int(row['regularization']) for row in classes
            if row['checkpoint'] == name)
    for name in ('shares', 'weights', 'least_weight', 'most_weight'):
        assert (out / f'{name}.png').read_bytes().startswith(b'\x89PNG')
    page = (out / 'regularization.html').read_text()
    references = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert len(references) == 4
    assert all(ref.startswith('data:image/png;base64,') for ref in references)
    assert '<script' not in page and '://' not in page


def teacher(trained: Path, folder: Path) -> Path:
    """The teacher of a checkpoint as a file of its own."""
    weights = torch.load(
        trained / 'epoch_1.pth', weights_only=False)['state_dict']
    path = folder / 'teacher.pth'
    torch.save(
        {key[8:]: value
         for key, value in weights.items() if key.startswith('teacher.')},
        path)
    return path


def test_teacher_may_stand_in_the_checkpoint(
        trained: Path, call_tool: Call, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call_tool('analyze.py', 'regularization', DISTILLATION,
              trained / 'epoch_2.pth', '--cfg-options',
              'val_dataloader.dataset.indices=10')
    out = Path('work_dirs/tiny_distillation/regularization_val')
    assert len(rows(out / 'samples.csv')) == 10
    assert not list(out.glob('*.part'))


def test_runs(trained: Path, call_tool: Call, tmp_path: Path,
              capsys: pytest.CaptureFixture) -> None:
    call_tool('analyze.py', 'runs', trained, '--out', tmp_path)
    assert 'Unfinished' not in capsys.readouterr().out
    row, = rows(tmp_path / 'methods.csv')
    assert (row['method'], row['runs'], row['last epochs']) == ('wsld', '1',
                                                                '2')
    newest = max(trained.glob('*/vis_data/scalars.json'))
    last = json.loads(newest.read_text().splitlines()[-1])
    assert float(row['last mean']) == last['accuracy/top1']
    assert (tmp_path / 'runs.md').read_text().startswith('| method |')
    assert (tmp_path / 'runs.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.timeout(600)
def test_bias_variance_interrupted_and_continued(
        call_tool: Call, tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    args = ('bias-variance', STUDENT, '--runs', 2, '--splits', 'bootstrap',
            '--out', tmp_path, *SHORT)
    marks = [
        tmp_path / 'tiny_student' / f'run{run}' / 'training.json'
        for run in (0, 1)
    ]

    def finished() -> list[Path]:
        return [
            mark for mark in marks
            if mark.exists() and '"finished": true' in mark.read_text()
        ]

    def interrupt() -> None:
        while not finished():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SystemExit) as leaving:
        call_tool('analyze.py', *args)
    assert leaving.value.code == 130
    assert capsys.readouterr().err.count('\n') == 1
    assert not list(tmp_path.glob('*.csv'))
    done = finished()
    kept = {
        path: path.stat().st_mtime_ns
        for mark in done for path in mark.parent.rglob('*') if path.is_file()
    }

    call_tool('analyze.py', *args)
    output = capsys.readouterr().out
    assert output.count('Reused') >= len(done)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    row, = rows(tmp_path / 'bias_variance_test.csv')
    assert (row['config'], row['epoch'], row['runs']) == ('tiny_student', '1',
                                                          '2')
    assert float(row['error']) == pytest.approx(
        float(row['bias']) + float(row['variance']))
    for split in ('val', 'test'):
        runs = [
            np.load(mark.parent / f'{split}_epoch_1.npy') for mark in marks
        ]
        assert runs[0].shape == (20, 10)
        assert np.allclose(np.exp(runs[0]).sum(1), 1, atol=1e-5)
        # They learnt from other samples.
        assert not np.allclose(*runs)
    labels = np.load(marks[0].parent / 'test_labels.npy')
    # Both runs, each one's cross-entropy.
    assert float(row['error']) == pytest.approx(-np.mean(
        [run[range(20), labels].mean() for run in runs]), rel=1e-5)
    assert (tmp_path / 'bias_variance_test.png').exists()
    assert '| tiny_student | 1 |' in (tmp_path /
                                      'bias_variance_test.md').read_text()

    # The other split needs no training; other settings take no run over.
    call_tool('analyze.py', *args[:6], '--split', 'val', *args[6:])
    assert 'Training' not in capsys.readouterr().out
    assert (tmp_path / 'bias_variance_val.csv').exists()
    with pytest.raises(SystemExit, match='run0 is for a training with other'):
        call_tool('analyze.py', *args, 'optim_wrapper.optimizer.lr=1')
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


MISTAKES = {
    'cannot read the config nowhere.py':
    ('regularization', 'nowhere.py', 'epoch_1.pth'),
    'missing.pth can not be found':
    ('regularization', '{distillation}', 'missing.pth'),
    'must have one WSLDLoss': ('regularization', '{student}', 'missing.pth'),
    'teacher_ckpt is not set, and there is no teacher in {trained}':
    ('regularization', '{distillation}', '{trained}'),
    'there is no model.teacher_ckpt=missing.pth':
    ('bias-variance', '{distillation}', '--cfg-options',
     'model.teacher_ckpt=missing.pth'),
    'tiny_distillation has another training set than tiny_student':
    ('bias-variance', '{student}', '{distillation}'),
    'tiny_student has no test_dataloader':
    ('bias-variance', '{student}', '--cfg-options', 'test_dataloader=None'),
    'nothing holds no': ('runs', 'nothing'),
}


@pytest.mark.parametrize('message', MISTAKES)
def test_mistakes_are_told_in_one_line(
        message: str, trained: Path, call_tool: Call, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = dict(
        student=STUDENT,
        distillation=DISTILLATION,
        trained=trained / 'epoch_2_student.pth')
    with pytest.raises(SystemExit) as leaving:
        call_tool('analyze.py',
                  *(arg.format(**names) for arg in MISTAKES[message]))
    line = leaving.value.code
    assert isinstance(line, str)
    assert message.format(**names) in line
    assert '\n' not in line
    assert list(tmp_path.iterdir()) == []


def test_impossible_numbers_are_refused(
        call_tool: Call, capsys: pytest.CaptureFixture) -> None:
    for option, value in (('--runs', 1), ('--interval', 0)):
        with pytest.raises(SystemExit):
            call_tool('analyze.py', 'bias-variance', STUDENT, option, value)
        assert f'{option}: expected' in capsys.readouterr().err


def test_a_validation_that_was_killed_is_made_up_for(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from rich.console import Console
    from trainings import Training, train

    def training() -> Training:
        return Training(
            STUDENT,
            tmp_path,
            options={
                'train_cfg.max_epochs': 2,
                'train_cfg.val_interval': 1,
                'default_hooks.checkpoint.interval': 1,
                'train_dataloader.dataset.indices': 20,
                'val_dataloader.dataset.indices': 20,
            })

    train([training()], Console(), 1)
    whole = training().history().validations
    assert set(whole) == {1, 2}

    # mmengine saved the last epoch, and was killed before it had validated
    # it; its first checkpoint is gone because the run went on to be finished.
    log, = tmp_path.glob('*/vis_data/scalars.json')
    lines = log.read_text().splitlines()
    assert json.loads(lines[-1]).keys() >= {'accuracy/top1', 'step'}
    log.write_text('\n'.join(lines[:-1]) + '\n')
    mark = tmp_path / 'training.json'
    mark.write_text(json.dumps(
        json.loads(mark.read_text()) | {'finished': False}))
    assert not training().validated
    train([training()], Console(), 1)
    again = training().history().validations
    assert again[2]['accuracy/top1'] == whole[2]['accuracy/top1']


def test_the_epoch_before_is_gone_back_to(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from trainings import Training
    training = Training(STUDENT, tmp_path)
    last = training.epochs
    for epoch in (4, 8, last):
        for name in (f'epoch_{epoch}', f'epoch_{epoch}_student'):
            (tmp_path / f'{name}.pth').touch()
    training._step_back()
    assert not training.checkpoint.exists()
    pointer = tmp_path / 'last_checkpoint'
    assert pointer.read_text() == str(tmp_path / 'epoch_8.pth')
    for path in tmp_path.glob('epoch_*.pth'):
        path.unlink()
    training.checkpoint.touch()
    training._step_back()
    assert not pointer.exists()


def test_two_processes_do_not_train_one_run(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    monkeypatch.syspath_prepend(str(TOOLS))
    from trainings import Training, TrainingError
    training = Training(STUDENT, tmp_path)
    with training.log.open('a') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match='by another process'):
            training.start(1)
    assert list(tmp_path.iterdir()) == [training.log]
