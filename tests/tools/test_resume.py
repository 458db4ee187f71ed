"""A killed and resumed run ends where an uninterrupted one does."""
from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import DISTILLATION, finished, start_tool

from wsld_plugin.checkpoints import read_checkpoint


def start(*args: object) -> subprocess.Popen:
    return start_tool('dist_train.sh', DISTILLATION, 2, '--work-dir', *args)


def kill_in_epoch(run: subprocess.Popen, epoch: int,
                  started: bool = False) -> None:
    """Kill a process, or the first that it started, in an epoch's middle."""
    assert run.stdout is not None
    output = []
    for line in run.stdout:
        output.append(line)
        if f'Epoch(train) [{epoch}][2/' in line:
            children = Path(f'/proc/{run.pid}/task/{run.pid}/children')
            os.kill(int(children.read_text().split()[0]) if started else
                    run.pid, signal.SIGKILL)
            return
    pytest.fail(f'ended before epoch {epoch}:\n' + ''.join(output[-30:]))


def check_same_end(whole: Path, cut: Path) -> None:
    """Compare the last checkpoints of two runs bit by bit."""
    ours, theirs = (read_checkpoint(str(folder / 'epoch_3.pth'))
                    for folder in (cut, whole))
    assert ours['state_dict'].keys() == theirs['state_dict'].keys()
    for key, value in theirs['state_dict'].items():
        assert torch.equal(ours['state_dict'][key], value), key
    # Measured once, by the run that was killed.
    assert len({one['message_hub']['runtime_info']['teacher_metrics'][
        'teacher/accuracy/top1'] for one in (ours, theirs)}) == 1
    logs = [log.read_text() for log in sorted(cut.glob('*/*.log'))]
    assert ['The teacher on the validation set' in log
            for log in logs] == [True, False]


def test_one_process(tmp_path: Path,
                     call_tool: Callable[..., None]) -> None:
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    killed = start_tool('train.py', DISTILLATION, '--work-dir', cut)
    kill_in_epoch(killed, 2)
    killed.communicate()
    assert (cut / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    call_tool('train.py', DISTILLATION, '--work-dir', whole)
    call_tool('train.py', DISTILLATION, '--work-dir', cut, '--resume')
    check_same_end(whole, cut)


def test_one_of_two_processes_is_killed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / 'whole', tmp_path / 'cut with a blank'
    finished(start(whole))
    # The launcher starts all again. What another training left in the folder
    # is not gone on from, neither at first nor then.
    monkeypatch.setenv('MAX_RESTARTS', '1')
    cut.mkdir()
    old = cut / 'last_checkpoint'
    old.write_text(str(whole / 'epoch_3.pth'))
    os.utime(old, (0, 0))
    restarted = start(cut)
    kill_in_epoch(restarted, 2, started=True)
    finished(restarted)
    check_same_end(whole, cut)
