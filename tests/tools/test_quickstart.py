"""The quickstart, small: stopped, continued, reused."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
# What the tool does once it is in its environment, on fewer scans.
CODE = """
import functools, sys
sys.path.insert(0, sys.argv[1])
import _environment, quickstart
from _start import start
from wsld_plugin import distillation
_environment.enter = lambda script: None
distillation.distil_digits = functools.partial(
    distillation.distil_digits, options={
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': 1,
        'train_dataloader.dataset.indices': 40,
        'val_dataloader.dataset.indices': 40,
    })
sys.argv = ['quickstart.py', '--seeds', '1', '--work-dirs', sys.argv[2]]
start(quickstart.main)
"""


def begin(work_dirs: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', CODE, str(TOOLS), str(work_dirs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True)


def ended(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    output, errors = process.communicate()
    assert process.returncode == code, errors
    return output, errors


@pytest.mark.timeout(600)
def test_stopped_continued_reused(tmp_path: Path) -> None:
    teacher = tmp_path / 'ce_r34_digits'
    process = begin(tmp_path)
    while not (teacher / 'last_checkpoint').exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.terminate()
    assert ended(process, 130)[1] == 'quickstart.py: interrupted\n'
    # Nobody is left of its group.
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert not (teacher / 'finished').exists()

    output, errors = ended(begin(tmp_path))
    assert errors == ''
    assert 'resumed epoch: 1' in (teacher / 'train.log').read_text()
    assert output.count('Trained') == 3
    rows = [line for line in output.splitlines() if 'ResNet-' in line]
    assert len(rows) == 3 and 'WSLD' in rows[2]
    results = tmp_path / 'quickstart'
    for name in ('runs.png', 'predictions.png'):
        assert f'{results / name}\n' in output
        assert (results / name).read_bytes().startswith(b'\x89PNG')
    student, = results.glob('wsld_r34_r18_digits_seed0_*.pth')
    assert f'{student}\n' in output
    kept = {path: path.stat().st_mtime for path in tmp_path.rglob('*.pth')}
    assert len(kept) == 4

    again, _ = ended(begin(tmp_path))
    assert again.count('Reused') == 3 and 'Trained' not in again
    assert [line for line in again.splitlines() if 'ResNet-' in line] == rows
    assert kept == {
        path: path.stat().st_mtime
        for path in tmp_path.rglob('*.pth')
    }
    # A file where a folder should be.
    _, errors = ended(begin(teacher / 'train.log'), 2)
    assert errors.count('\n') == 1 and f"'{teacher}/train.log" in errors


def test_bad_arguments_install_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / 'quickstart.py'), '--seeds', '0'],
        capture_output=True,
        text=True)
    assert done.returncode == 2
    assert 'expected 1 or more, got 0' in done.stderr
