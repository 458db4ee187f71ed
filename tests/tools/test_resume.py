"""A killed and resumed run ends where an uninterrupted one does."""
from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch

from wsld_plugin.checkpoints import read_checkpoint

TINY_CONFIG = Path(__file__).with_name('tiny_distillation.py')


def descendants(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return [pid, *chain.from_iterable(map(descendants, map(int, children)))]


def kill_in_epoch(run: subprocess.Popen, epoch: int,
                  whole: bool = True) -> None:
    """Kill a run's processes, or one of several, in the middle of an epoch."""
    assert run.stdout is not None
    output = []
    for line in run.stdout:
        output.append(line)
        if f'Epoch(train) [{epoch}][2/' in line:
            # The launcher's processes are in groups of their own.
            _, *started = descendants(run.pid)
            if not whole:
                os.kill(started[0], signal.SIGKILL)
                return
            for pid in (run.pid, *started):
                os.kill(pid, signal.SIGKILL)
            run.communicate()
            return
    pytest.fail(f'ended before epoch {epoch}:\n' + ''.join(output[-30:]))


def check_same_end(whole: Path, cut: Path) -> None:
    """Compare the last checkpoints of the two runs bit by bit."""
    ours, theirs = (
        read_checkpoint(str(folder / 'epoch_3.pth'))
        for folder in (cut, whole))
    assert ours['state_dict'].keys() == theirs['state_dict'].keys()
    for key, value in theirs['state_dict'].items():
        assert torch.equal(ours['state_dict'][key], value), key
    # Measured once, by the run that was killed.
    ours, theirs = (
        checkpoint['message_hub']['runtime_info']
        for checkpoint in (ours, theirs))
    assert ours['teacher_metrics'] == theirs['teacher_metrics']
    logs = [log.read_text() for log in sorted(cut.glob('*/*.log'))]
    assert ['The teacher on the validation set' in log
            for log in logs] == [True, False]


def test_one_process(tmp_path: Path, call_tool: Callable[..., None],
                     start_tool: Callable[..., subprocess.Popen]) -> None:
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    killed = start_tool('train.py', TINY_CONFIG, '--work-dir', cut)
    kill_in_epoch(killed, 2)
    assert (cut / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    call_tool('train.py', TINY_CONFIG, '--work-dir', whole)
    call_tool('train.py', TINY_CONFIG, '--work-dir', cut, '--resume')
    check_same_end(whole, cut)


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                       start_tool: Callable[..., subprocess.Popen]) -> None:
    def train(*args: object) -> subprocess.Popen:
        return start_tool('dist_train.sh', TINY_CONFIG, 2, '--work-dir', *args)

    def finish(run: subprocess.Popen) -> None:
        output, _ = run.communicate(timeout=300)
        assert run.returncode == 0, output[-3000:]

    whole, again = tmp_path / 'whole', tmp_path / 'cut with a blank'
    finish(train(whole))
    # One is killed; the launcher starts all again. What another training
    # left in the folder is not gone on from, neither at first nor then.
    monkeypatch.setenv('MAX_RESTARTS', '1')
    again.mkdir()
    old = again / 'last_checkpoint'
    old.write_text(str(whole / 'epoch_3.pth'))
    os.utime(old, (0, 0))
    restarted = train(again)
    kill_in_epoch(restarted, 2, whole=False)
    finish(restarted)
    check_same_end(whole, again)
