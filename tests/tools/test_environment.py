"""The environment that the README's commands make, without a network."""
from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import sys
import threading
from contextlib import redirect_stderr
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import _environment as environment
    return environment


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pip fail at once, as it does offline."""
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)


def fails(environment: ModuleType, env: Path, message: str) -> None:
    """The environment cannot be made, which is told in one line."""
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as leaving:
        environment.prepare(env)
    assert leaving.value.code == 2
    assert message in said.getvalue() and said.getvalue().count('\n') == 1


def test_failed_install_is_made_anew(environment: ModuleType, tmp_path: Path,
                                     no_index: None) -> None:
    env = tmp_path / 'env'
    env.mkdir()
    (env / 'half').touch()
    (env / 'bin').mkdir()
    (env / 'bin' / 'python').symlink_to(sys.executable)
    # Begun, or of other requirements.
    (env / environment._MARK).write_text('older')
    fails(environment, env, 'installation failed')
    assert not (env / 'half').exists()
    assert (env / environment._MARK).read_text() == ''


def test_finished_one_is_reused(environment: ModuleType, tmp_path: Path,
                                no_index: None) -> None:
    env = tmp_path / 'env'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(env)],
                   check=True)
    mark = env / environment._MARK
    mark.write_text(environment._requirements_digest())
    assert environment.prepare(env) == env / 'bin' / 'python'


def test_nothing_is_made_while_something_is_at_work(
        environment: ModuleType, tmp_path: Path, no_index: None,
        capsys: pytest.CaptureFixture) -> None:
    (tmp_path / 'env').mkdir()
    (tmp_path / 'env' / 'mine').touch()
    others = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(others, fcntl.LOCK_SH)
    threading.Timer(0.3, os.close, [others]).start()
    fails(environment, tmp_path / 'env', 'not made by this command')
    assert capsys.readouterr().out == (
        f'Waiting for what is at work in {tmp_path / "env"}\n')


def test_other_folder_is_left_alone(environment: ModuleType,
                                    tmp_path: Path) -> None:
    (tmp_path / 'mine').touch()
    fails(environment, tmp_path, 'not made by this command')
    assert (tmp_path / 'mine').exists()


@pytest.mark.parametrize('version', [(3, 8, 18), (3, 14, 0)])
def test_wrong_python_is_named(environment: ModuleType, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch,
                               version: tuple) -> None:
    monkeypatch.setattr(environment.sys, 'version_info', version)
    found = '.'.join(map(str, version))
    fails(environment, tmp_path / 'env', f'3.9 to 3.13, this is {found}')
    assert not (tmp_path / 'env').exists()


@pytest.mark.parametrize('tool', ['run_tests.py', 'quickstart.py'])
def test_an_installed_one_says_what_it_needs(tool: str,
                                             tmp_path: Path) -> None:
    shutil.copytree(TOOLS, tmp_path / '.mim' / 'tools')
    run = subprocess.run([sys.executable, tmp_path / '.mim' / 'tools' / tool],
                         capture_output=True,
                         text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f'{tool}: needs a checkout')
    assert run.stderr.count('\n') == 1
