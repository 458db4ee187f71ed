"""The environment that the README's commands make, without a network."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import environment
    return environment


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pip fail at once, as it does offline."""
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)


def mark(env: Path) -> dict:
    return json.loads((env / 'wsld_plugin.json').read_text())


def test_needs_the_standard_library_only() -> None:
    code = (f'import sys; sys.path.insert(0, {str(TOOLS)!r})\n'
            'import environment, quickstart, run_tests\n'
            'print(*{name.split(".")[0] for name in sys.modules})')
    done = subprocess.run([sys.executable, '-I', '-S', '-c', code],
                          capture_output=True,
                          text=True,
                          check=True)
    assert not {'numpy', 'torch', 'rich', 'wsld_plugin'} & set(
        done.stdout.split())


def test_failed_install_is_made_anew(environment: ModuleType, tmp_path: Path,
                                     no_index: None) -> None:
    env = tmp_path / 'env'
    with pytest.raises(SystemExit, match='installation failed'):
        environment.prepare(env)
    assert mark(env) == {'requirements': ''}
    (env / 'half').touch()
    with pytest.raises(SystemExit, match='installation failed'):
        environment.prepare(env)
    assert not (env / 'half').exists()


def test_finished_one_is_reused(environment: ModuleType, tmp_path: Path,
                                no_index: None) -> None:
    env = tmp_path / 'env'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(env)],
                   check=True)
    environment._write_mark(env, environment._requirements_digest())
    assert environment.prepare(env) == env / 'bin' / 'python'
    # Other requirements than those installed: pip is called again.
    environment._write_mark(env, 'older')
    with pytest.raises(SystemExit, match='installation failed'):
        environment.prepare(env)


def test_other_folder_is_left_alone(environment: ModuleType,
                                    tmp_path: Path) -> None:
    (tmp_path / 'mine').touch()
    with pytest.raises(SystemExit, match='not made by this command'):
        environment.prepare(tmp_path)
    assert (tmp_path / 'mine').exists()


@pytest.mark.parametrize('version', [(3, 8, 18), (3, 14, 0)])
def test_wrong_python_is_named(environment: ModuleType, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch,
                               version: tuple) -> None:
    monkeypatch.setattr(environment.sys, 'version_info', version)
    found = '.'.join(map(str, version))
    with pytest.raises(SystemExit, match=f'3.9 to 3.13, this is {found}'):
        environment.prepare(tmp_path / 'env')
    assert not (tmp_path / 'env').exists()
