"""The one call from the command line: quickstart.py and distil.py."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hook_tester import launch
from PIL import Image
from processes import TOOLS

from wsld_plugin import command_line

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
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)


@pytest.mark.timeout(600)
def test_stopped_and_continued(tmp_path: Path) -> None:
    out = tmp_path / 'distilled'
    teacher = out / 'teachers' / '1_scratch'
    process = begin(tmp_path)
    while not (teacher / 'last_checkpoint').exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors.endswith('quickstart.py: interrupted\n')
    # Nobody is left of its group.
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert not (teacher / 'finished').exists()

    process = begin(tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count('Trained') == 3
    assert 'resumed epoch: 1' in (teacher / 'train.log').read_text()
    found = json.loads((out / 'metrics.json').read_text())
    assert [*found['networks']] == [
        'teacher', 'student alone', 'student distilled']
    scans = len([*tmp_path.glob('pictures/test/*/*.png')])
    assert all(f'{one["accuracy"]:.1f}' in output and one['pictures'] == scans
               for one in found['networks'].values())
    page = (out / 'report.html').read_text()
    assert f'{out / "report.html"}\n' in output and 'resnet34@none' in page


def write_pictures(folder: Path) -> Path:
    draw = np.random.RandomState(0)
    for name in ('dark', 'light'):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            noise = draw.randint(0, 128, (32, 32, 3)) + 127 * (name != 'dark')
            Image.fromarray(noise.astype('uint8')).save(
                folder / name / f'{number}.png')
    return folder


@pytest.mark.timeout(600)
def test_two_processes_make_one_result(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / 'pictures')
    said = launch(
        TOOLS / 'distil.py', '--launcher', 'pytorch', '--data', pictures,
        '--teacher', 'resnet20@none', '--student', 'resnet8', '--epochs', 1,
        '--tau', 4, '--alpha', 1, '--no-onnx', '--work-dir', tmp_path / 'out')
    # By one of the two.
    assert said.count('report: ') == 1
    found = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    assert found['settings']['processes'] == 2
    assert found['networks']['student distilled']['pictures'] == 4


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='Linux has it')
def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    # As the log of a training, whose name is not in the error.
    with pytest.raises(SystemExit), command_line.one_line_errors(), open(
            '/dev/full', 'w') as log:
        log.write('Epoch 1')
    assert 'No space left on device' in capsys.readouterr().err


def test_mistakes_are_one_line(refusal: Callable[..., str],
                               tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / 'pictures')
    call = ('distil.py', '--data', pictures, '--work-dir', tmp_path / 'out')
    assert 'nowhere' in refusal('distil.py', '--data', 'nowhere')
    assert "got 'much'" in refusal(*call, '--tau', 'much')
    (pictures / 'light').rename(pictures / 'DARK')
    assert 'dark' in refusal(*call, '--tau', '4', '--alpha', '1')
