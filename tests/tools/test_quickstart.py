"""The quickstart, small: interrupted, continued, reused, failing."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
SMALL = {
    'train_cfg.max_epochs': 2,
    'train_cfg.val_interval': 1,
    'default_hooks.checkpoint.interval': 1,
    'train_dataloader.dataset.indices': 40,
    'val_dataloader.dataset.indices': 40,
}


def start(work_dirs: Path, **options: object) -> subprocess.Popen:
    """What tools/quickstart.py does once it is in its environment."""
    code = (f'import sys; sys.path.insert(0, {str(TOOLS)!r})\n'
            'from pathlib import Path\n'
            'import distil_digits\n'
            f'distil_digits.run(Path({str(work_dirs)!r}), 1, '
            f'{ {**SMALL, **options}!r})')
    return subprocess.Popen(
        [sys.executable, '-c', code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True)


@pytest.mark.timeout(600)
def test_interrupted_continued_reused(tmp_path: Path) -> None:
    teacher = tmp_path / 'ce_r34_digits'
    process = start(tmp_path)
    while not (teacher / 'last_checkpoint').exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.count('\n') == 1 and 'interrupted' in errors
    mark = json.loads((teacher / 'training.json').read_text())
    assert not mark['finished']

    process = start(tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ''
    assert 'resumed epoch: 1' in (teacher / 'train.log').read_text()
    assert output.count('Trained') == 3
    rows = [line for line in output.splitlines() if 'ResNet-' in line]
    assert len(rows) == 3 and 'WSLD' in rows[2]
    results = tmp_path / 'quickstart'
    for name in ('curves.png', 'predictions.png'):
        assert (results / name).read_bytes().startswith(b'\x89PNG')
    assert len(list(results.glob('wsld_r34_r18_digits_seed0_*.pth'))) == 1
    kept = {path: path.stat().st_mtime for path in tmp_path.rglob('*.pth')}
    assert len(kept) == 4

    process = start(tmp_path)
    again, errors = process.communicate()
    assert process.returncode == 0, errors
    assert again.count('Reused') == 3 and 'Trained' not in again
    assert [line for line in again.splitlines() if 'ResNet-' in line] == rows
    assert kept == {
        path: path.stat().st_mtime
        for path in tmp_path.rglob('*.pth')
    }


def test_failed_training_names_its_log(tmp_path: Path) -> None:
    process = start(tmp_path, **{'train_dataloader.dataset.split': 'dev'})
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count('\n') == 1
    assert "got 'dev'" in errors
    log = Path(errors.split()[-1])
    assert "got 'dev'" in log.read_text()


def test_bad_arguments_install_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / 'quickstart.py'), '--seeds', '0'],
        capture_output=True,
        text=True)
    assert done.returncode == 2
    assert 'expected 1 or more, got 0' in done.stderr
