"""analyze.py on tiny trainings, and modules.py."""
from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from processes import DISTILLATION, STUDENT

# The student's training, tiny.
SHORT = ('--cfg-options', 'train_cfg.max_epochs=1',
         'train_dataloader.dataset.indices=20',
         'train_dataloader.batch_size=5',
         'val_dataloader.dataset.indices=20',
         'test_dataloader.dataset.indices=20')

Call = Callable[..., None]


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
    assert samples['sample'].tolist() == 2 * [*range(30)]
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
    pictures = re.findall('base64,([^"]+)"',
                          (out / 'regularization.html').read_text())
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


def test_names_for_recorders(call_tool: Call,
                             capsys: pytest.CaptureFixture) -> None:
    call_tool('modules.py', DISTILLATION, 'head.*')
    lines = [line for line in capsys.readouterr().out.splitlines()
             if 'Linear' in line]
    assert len(lines) == 2 and all('10' in line for line in lines)
