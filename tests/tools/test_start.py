"""How the tools start: environment, help, a user's modules, Ctrl-C."""
from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from processes import DISTILLATION, TOOLS, run_python, start_tool

PYTHON_TOOLS = [
    path for path in sorted(TOOLS.glob('[a-z]*.py'))
    if 'start(main)' in path.read_text()
]


@pytest.mark.parametrize('tool', PYTHON_TOOLS, ids=lambda path: path.name)
def test_help_needs_no_package(tool: Path) -> None:
    """So that it is there within a second, which torch alone takes."""
    run = run_python('-S', tool, '--help', PYTHONPATH='')
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
    run = run_python(TOOLS / 'test.py', config, 'x.pth',
                     PYTHONPATH=f'{tmp_path}:{TOOLS.parent}')
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines()[-1] == f'test.py: {config} has no model'
    assert run.stdout.splitlines()[-len(names) - 1:] == [
        *(f'loaded {tmp_path / name}.py' for name in names), 'spawned 0']


def test_ctrl_c_is_one_line(tmp_path: Path,
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

# As a shell starts what runs in the background.
signal.signal(signal.SIGINT, signal.SIG_IGN)

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
    run = run_python('-c', FORKING, TOOLS, name)
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
    run = run_python('-c', LOADING, TOOLS)
    assert (run.returncode, run.stderr) == (130, '-c: interrupted\n')


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a pip that fails at once, as it does offline."""
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    monkeypatch.syspath_prepend(str(TOOLS))
    import _environment as environment
    return environment


@pytest.fixture
def failing(environment: ModuleType, tmp_path: Path,
            capfd: pytest.CaptureFixture) -> Callable[[], tuple[str, str]]:
    """What is said, and in a last line why there is no environment."""

    def prepare() -> tuple[str, str]:
        with pytest.raises(SystemExit) as leaving:
            environment.prepare(tmp_path / 'env')
        assert leaving.value.code == 2
        said = capfd.readouterr()
        return said.out, said.err.splitlines()[-1]

    return prepare


def test_failed_install_is_made_anew(environment: ModuleType, tmp_path: Path,
                                     failing: Callable) -> None:
    env = tmp_path / 'env'
    (env / 'bin').mkdir(parents=True)
    (env / 'half').touch()
    (env / 'bin' / 'python').symlink_to(sys.executable)
    # Begun, or of other requirements.
    (env / environment._MARK).write_text('older')
    assert 'installation failed' in failing()[1]
    assert not (env / 'half').exists()
    assert (env / environment._MARK).read_text() == ''


def test_finished_one_is_reused(environment: ModuleType,
                                tmp_path: Path) -> None:
    env = tmp_path / 'env'
    run_python('-m', 'venv', '--without-pip', env)
    (env / environment._MARK).write_text(environment._requirements_digest())
    assert environment.prepare(env) == env / 'bin' / 'python'


def test_nothing_is_made_while_something_is_at_work(
        tmp_path: Path, failing: Callable) -> None:
    mine = tmp_path / 'env' / 'mine'
    mine.parent.mkdir()
    mine.touch()
    others = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(others, fcntl.LOCK_SH)
    threading.Timer(0.3, os.close, [others]).start()
    out, error = failing()
    assert out == f'Waiting for what is at work in {mine.parent}\n'
    assert 'not made by this command' in error and mine.exists()


@pytest.mark.parametrize('version', [(3, 8, 18), (3, 14, 0)])
def test_wrong_python_is_named(environment: ModuleType, failing: Callable,
                               tmp_path: Path, version: tuple,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, 'version_info', version)
    found = '.'.join(map(str, version))
    assert f'3.9 to 3.13, this is {found}' in failing()[1]
    assert not (tmp_path / 'env').exists()


@pytest.mark.parametrize('tool', ['run_tests.py', 'quickstart.py'])
def test_an_installed_one_says_what_it_needs(tool: str,
                                             tmp_path: Path) -> None:
    shutil.copytree(TOOLS, tmp_path / '.mim' / 'tools')
    run = run_python(tmp_path / '.mim' / 'tools' / tool)
    assert run.returncode == 2
    assert run.stderr.startswith(f'{tool}: needs a checkout')
    assert run.stderr.count('\n') == 1
