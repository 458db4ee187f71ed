"""How the tools start: help, a user's modules, Ctrl-C."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
DISTILLATION = Path(__file__).with_name('tiny_distillation.py')
PYTHON_TOOLS = [
    path for path in sorted(TOOLS.glob('[a-z]*.py'))
    if 'start(main)' in path.read_text()
]


@pytest.mark.parametrize('tool', PYTHON_TOOLS, ids=lambda path: path.name)
def test_help_needs_no_package(tool: Path) -> None:
    """So that it is there within a second, which torch alone takes."""
    run = subprocess.run([sys.executable, '-S', str(tool), '--help'],
                         capture_output=True,
                         text=True,
                         env=dict(os.environ, PYTHONPATH=''))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f'usage: {tool.name} ')


# What a loader's workers do where they are spawned: look the tool up again.
SPAWNING = '''
import multiprocessing
process = multiprocessing.get_context('spawn').Process(target=int)
process.start()
process.join()
print('spawned', process.exitcode)
'''


def test_users_modules_are_not_shadowed(tmp_path: Path) -> None:
    names = ['_environment', *(path.stem for path in PYTHON_TOOLS), 'results']
    for name in names:
        (tmp_path / f'{name}.py').write_text('print("loaded", __file__)\n')
    (tmp_path / 'spawning.py').write_text(SPAWNING)
    config = tmp_path / 'config.py'
    config.write_text(
        f'custom_imports = dict(imports={[*names, "spawning"]})\n')
    run = subprocess.run(
        [sys.executable, str(TOOLS / 'test.py'), str(config), 'x.pth'],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=f'{tmp_path}:{TOOLS.parent}'))
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines()[-1] == f'test.py: {config} has no model'
    assert run.stdout.splitlines()[-len(names) - 1:] == [
        *(f'loaded {tmp_path / name}.py' for name in names), 'spawned 0']


def test_ctrl_c_is_one_line(tmp_path: Path,
                            start_tool: Callable[..., subprocess.Popen],
                            monkeypatch: pytest.MonkeyPatch) -> None:
    # Python then tells each import, torch's in the package's among them.
    monkeypatch.setenv('PYTHONVERBOSE', '1')
    run = start_tool('train.py', DISTILLATION, '--work-dir', tmp_path)
    assert run.stdout is not None
    for line in run.stdout:
        if "import 'torch" in line:
            break
    monkeypatch.undo()
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 130, output[-3000:]
    assert 'train.py: interrupted' in output
    assert 'Traceback' not in output


# A signal that comes while a loader forks its workers is heard by what Python
# then calls, and that is where it would end.
FORKING = '''
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from _start import start

def main():
    number = getattr(signal, sys.argv[2])
    signal.signal(number, signal.default_int_handler)
    os.register_at_fork(after_in_parent=lambda: signal.raise_signal(number))
    if os.fork() == 0:
        os._exit(0)
    print('forked', flush=True)
    time.sleep(60)

start(main)
'''


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_an_interrupt_is_heard_that_comes_in_a_fork(name: str) -> None:
    run = subprocess.run([sys.executable, '-c', FORKING, str(TOOLS), name],
                         capture_output=True,
                         text=True,
                         preexec_fn=lambda: signal.signal(
                             signal.SIGINT, signal.SIG_IGN))
    assert (run.returncode, run.stdout, run.stderr) == (
        130, 'forked\n', '-c: interrupted\n')


# The workers are started, and the loader that started them is not whole.
LOADING = '''
import sys
sys.path.insert(0, sys.argv[1])
from _start import start

def main():
    from torch.utils.data import dataloader

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    dataloader._MultiProcessingDataLoaderIter._reset = interrupted
    iter(dataloader.DataLoader(range(4), num_workers=2))

start(main)
'''


def test_an_interrupt_is_one_line_where_a_loader_starts() -> None:
    run = subprocess.run([sys.executable, '-c', LOADING, str(TOOLS)],
                         capture_output=True,
                         text=True)
    assert (run.returncode, run.stderr) == (130, '-c: interrupted\n')
