"""The one call from the command line: two processes, one-line refusals."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsld_plugin import command_line

TOOLS = Path(__file__).parents[2] / 'tools'


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
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--standalone',
        '--nproc_per_node', '2', TOOLS / 'distil.py', '--launcher', 'pytorch',
        '--data', pictures, '--teacher', 'resnet20@none', '--student',
        'resnet8', '--epochs', '1', '--tau', '4', '--alpha', '1',
        '--no-onnx', '--work-dir', tmp_path / 'out'
    ]
    done = subprocess.run([*map(str, command)], capture_output=True,
                          text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-3000:]
    # By one of the two.
    assert done.stdout.count('report: ') == 1
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
