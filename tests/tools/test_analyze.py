"""tools/analyze.py on tiny trainings: results and mistakes."""
from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

HERE = Path(__file__).parent
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
    work_dir = tmp_path_factory.mktemp('trained') / 'wsld, seed 0'
    call_tool('train.py', DISTILLATION, '--work-dir', work_dir,
              '--cfg-options', 'train_cfg.max_epochs=2',
              'train_dataloader.num_workers=0',
              'train_dataloader.dataset.indices=32',
              'val_dataloader.dataset.indices=20')
    return work_dir


def test_regularization(trained: Path, call_tool: Call, tmp_path: Path,
                        capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'results'
    weights = torch.load(
        trained / 'epoch_1.pth', weights_only=False)['state_dict']
    torch.save(
        {key[8:]: value
         for key, value in weights.items() if key.startswith('teacher.')},
        tmp_path / 'teacher.pth')
    call_tool('analyze.py', 'regularization', DISTILLATION,
              trained / 'epoch_1.pth', trained / 'epoch_2_student.pth',
              '--split', 'train', '--out', out, '--cfg-options',
              'train_dataloader.dataset.indices=30',
              f'model.teacher_ckpt={tmp_path / "teacher.pth"}')
    assert 'Regularization samples, train' in capsys.readouterr().out
    samples = pd.read_csv(out / 'samples.csv')
    assert len(samples) == 2 * 30
    assert samples['sample'].tolist() == 2 * [*range(30)]
    assert samples['weight'].to_numpy() == pytest.approx(
        1 - np.exp(-samples['ce_student'] / samples['ce_teacher']), abs=1e-5)
    # The teacher is the same at both, the student is not.
    first, second = samples[:30], samples[30:]
    assert {*first['checkpoint']} == {'epoch_1'}
    assert first['ce_teacher'].tolist() == second['ce_teacher'].tolist()
    assert (first['ce_student'].to_numpy() !=
            second['ce_student'].to_numpy()).all()
    classes = pd.read_csv(out / 'classes.csv')
    assert classes['samples'].tolist() == 20 * [3]
    for name, part in (('epoch_1', first), ('epoch_2_student', second)):
        counts = classes[classes['checkpoint'] == name]
        assert counts['regularization'].sum() == part['regularization'].sum()
    page = (out / 'regularization.html').read_text()
    pictures = re.findall('base64,([^"]+)"', page)
    assert len(pictures) == 2
    assert all(base64.b64decode(one).startswith(b'\x89PNG')
               for one in pictures)


def test_bias_variance(call_tool: Call, refusal: Callable[..., str],
                       tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ('bias-variance', STUDENT, '--runs', 2, '--splits', 'bootstrap',
            '--out', tmp_path, *SHORT, 'default_hooks=None')
    call_tool('analyze.py', *args)
    assert capsys.readouterr().out.count('Trained') == 2
    runs = [tmp_path / 'tiny_student' / f'run{run}' for run in (0, 1)]
    kept = {path: path.stat().st_mtime_ns for path in runs[0].rglob('*.*')}
    numbers = pd.read_csv(tmp_path / 'bias_variance_test.csv')
    assert {*numbers['config']} == {'tiny_student'}
    assert {*numbers['epoch']} == {1}
    mean = numbers.set_index('part')['mean']
    assert mean['error'] == pytest.approx(mean['bias'] + mean['variance'])
    found = [np.load(run / 'test_epoch_1.npy') for run in runs]
    assert found[0].shape == np.load(runs[1] / 'val_epoch_1.npy').shape == (
        20, 10)
    assert np.allclose(np.exp(found[0]).sum(1), 1, atol=1e-5)
    # They learnt from other samples.
    assert not np.allclose(*found)
    # Of both runs, each one's cross-entropy.
    labels = np.load(runs[0] / 'test_labels.npy')
    assert mean['error'] == pytest.approx(
        -np.mean([logp[range(20), labels].mean() for logp in found]), rel=1e-5)
    assert (tmp_path / 'bias_variance_test.png').exists()
    assert '| tiny_student | 1 |' in (tmp_path /
                                      'bias_variance_test.md').read_text()

    call_tool('analyze.py', 'runs', *runs, '--out', tmp_path / 'runs')
    assert '/top1 of the validation' in capsys.readouterr().out
    assert (tmp_path / 'runs' / 'curves.png').exists()
    # The other split needs no training; other settings take no run over.
    call_tool('analyze.py', *args[:6], '--split', 'val', *args[6:])
    assert capsys.readouterr().out.count('Reused') == 2
    assert (tmp_path / 'bias_variance_val.csv').exists()
    assert 'run0 holds another training' in refusal(
        'analyze.py', *args, 'optim_wrapper.optimizer.lr=1')
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


MISTAKES = {
    'cannot read the config nowhere.py':
    ('regularization', 'nowhere.py', 'epoch_1.pth'),
    'missing.pth is missing':
    ('regularization', '{distillation}', 'missing.pth'),
    'the config has no model.distiller':
    ('regularization', '{student}', 'missing.pth'),
    'teacher_ckpt is not set, and there is no teacher in {trained}':
    ('regularization', '{distillation}', '{trained}'),
    '{trained} does not fit the ImageClassifier':
    ('regularization', '{distillation}', '{trained}', '--cfg-options',
     'model.architecture.backbone.depth=34'),
    'there is no model.teacher_ckpt=missing.pth':
    ('bias-variance', '{distillation}', '--cfg-options',
     'model.teacher_ckpt=missing.pth'),
    'tiny_distillation has another training set than tiny_student':
    ('bias-variance', '{student}', '{distillation}'),
    'tiny_student has no test_dataloader':
    ('bias-variance', '{student}', '--cfg-options', 'test_dataloader=None'),
    'a variance over runs takes at least 2 of them, got 1':
    ('bias-variance', '{student}', '--runs', 1),
    'must be at least 1 epoch, got 0':
    ('bias-variance', '{student}', '--interval', 0),
    'nothing holds no': ('runs', 'nothing'),
}


@pytest.mark.parametrize('message', MISTAKES)
def test_mistakes_are_told_in_one_line(
        message: str, trained: Path, refusal: Callable[..., str],
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = dict(
        student=STUDENT,
        distillation=DISTILLATION,
        trained=trained / 'epoch_2_student.pth')
    said = refusal('analyze.py',
                   *(str(arg).format(**names) for arg in MISTAKES[message]))
    assert message.format(**names) in said
    assert list(tmp_path.iterdir()) == []
