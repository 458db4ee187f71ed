"""train.py, test.py, export_student.py and the scripts around them."""
from __future__ import annotations

import json
import pickle
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import DISTILLATION, STUDENT, TOOLS, finished, start_tool

# The scans that training validates on.
ON_VAL = ('--cfg-options', 'test_dataloader.dataset.split=val')

Call = Callable[..., None]


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines()]


def last_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_learning_rate_is_scaled(trained: Path) -> None:
    steps = [entry for entry in scalars(trained) if 'lr' in entry]
    # 0.02 is for 32 scans, a step takes 16.
    assert steps[0]['lr'] == pytest.approx(0.01)


@pytest.mark.parametrize('config', [DISTILLATION, STUDENT])
@pytest.mark.parametrize('whose', ['distiller', 'student'])
def test_both_checkpoints_with_both_configs(
        config: Path, whose: str, trained: Path, exported: Path,
        call_tool: Call, tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    checkpoint = exported if whose == 'student' else trained / 'epoch_2.pth'
    call_tool('test.py', config, checkpoint, '--work-dir', tmp_path, *ON_VAL)
    metrics = json.loads(last_line(capsys))
    validated = scalars(trained)[-1]
    assert metrics == {'accuracy/top1': validated['accuracy/top1']}


def test_two_processes_test_alike(trained: Path, tmp_path: Path) -> None:
    output = finished(start_tool(
        'dist_test.sh', DISTILLATION, trained / 'epoch_2.pth', 2,
        '--work-dir', tmp_path / 'a b', *ON_VAL))
    lines = [line for line in output.splitlines() if line.startswith('{"acc')]
    assert [json.loads(line)['accuracy/top1'] for line in lines
            ] == [scalars(trained)[-1]['accuracy/top1']]


def test_two_machines_train_as_one(tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(('', 0))
        port = free.getsockname()[1]
    for name, value in dict(NNODES=2, MASTER_ADDR='127.0.0.1',
                            PORT=port).items():
        monkeypatch.setenv(name, str(value))
    machines = []
    for rank in '01':
        monkeypatch.setenv('NODE_RANK', rank)
        machines.append(
            start_tool('dist_train.sh', DISTILLATION, 1, '--work-dir',
                       tmp_path, '--cfg-options', 'train_cfg.max_epochs=1'))
    for machine in machines:
        finished(machine)
    # Half of the 128 scans each, in batches of 16.
    assert [entry['step'] for entry in scalars(tmp_path) if 'lr' in entry
            ] == [1, 2, 3, 4]
    assert (tmp_path / 'epoch_1.pth').exists()


def test_outputs(exported: Path, call_tool: Call, tmp_path: Path,
                 capsys: pytest.CaptureFixture) -> None:
    common = (STUDENT, exported, '--work-dir', tmp_path, *ON_VAL)
    call_tool('test.py', *common, '--out', tmp_path / 'metrics.json',
              '--out-item', 'metrics')
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics == json.loads(last_line(capsys))
    call_tool('test.py', *common, '--out', tmp_path / 'scans.pkl')
    scans = pickle.loads((tmp_path / 'scans.pkl').read_bytes())
    assert len(scans) == 64
    assert scans[0]['pred_score'].shape == (10, )


def test_mixed_precision_without_validation(call_tool: Call,
                                            tmp_path: Path) -> None:
    call_tool('train.py', DISTILLATION, '--work-dir', tmp_path, '--amp',
              '--no-validate', '--cfg-options', 'train_cfg.max_epochs=1')
    log, = tmp_path.glob('*/*.log')
    assert "type='AmpOptimWrapper'" in log.read_text()
    losses = [entry['loss'] for entry in scalars(tmp_path) if 'loss' in entry]
    assert len(losses) == 8
    assert torch.tensor(losses).isfinite().all()
    assert not any('accuracy/top1' in entry for entry in scalars(tmp_path))


@pytest.mark.parametrize('script', sorted(TOOLS.glob('*.sh')),
                         ids=lambda path: path.name)
def test_scripts_tell_their_usage(script: Path) -> None:
    run = subprocess.run([str(script)], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f'usage: {script} ')
