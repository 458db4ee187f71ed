"""The quickstart, short: stopped and continued."""
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
# What the tool does once it is in its environment, on an eighth of the scans.
CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import _environment, quickstart
from _start import start
from wsld_plugin import datasets

def write_few(folder, write=datasets.write_digits):
    write(folder)
    for number, path in enumerate(sorted(folder.glob('*/*/*.png'))):
        if number % 8:
            path.unlink()

datasets.write_digits = write_few
_environment.enter = lambda script: None
sys.argv = ['quickstart.py', '--epochs', '2', '--work-dir', sys.argv[2]]
start(quickstart.main)
"""


def begin(work_dir: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', CODE, str(TOOLS), str(work_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True)


def ended(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    output, errors = process.communicate()
    assert process.returncode == code, errors
    return output, errors


@pytest.mark.timeout(600)
def test_stopped_and_continued(tmp_path: Path) -> None:
    out = tmp_path / 'distilled'
    teacher = out / 'teachers' / '1_scratch'
    process = begin(tmp_path)
    while not (teacher / 'last_checkpoint').exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.terminate()
    assert ended(process, 130)[1].endswith('quickstart.py: interrupted\n')
    # Nobody is left of its group.
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert not (teacher / 'finished').exists()

    output, _ = ended(begin(tmp_path))
    assert 'resumed epoch: 1' in (teacher / 'train.log').read_text()
    assert output.count('Trained') == 3
    found = json.loads((out / 'metrics.json').read_text())
    assert [*found['networks']] == [
        'teacher', 'student alone', 'student distilled'
    ]
    scans = len([*tmp_path.glob('pictures/test/*/*.png')])
    assert all(f'{one["accuracy"]:.1f}' in output and one['pictures'] == scans
               for one in found['networks'].values())
    page = (out / 'report.html').read_text()
    assert f'{out / "report.html"}\n' in output and 'resnet34@none' in page
