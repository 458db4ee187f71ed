"""Make and enter the environment that the commands in the README run in.

Only the standard library is used: this runs before anything is installed.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 9), (3, 13)
_EXTRAS = 'openmmlab,distil,deploy,experiments,test'
_MARK = 'wsld_plugin.json'


def enter(script: str, env: Path = ROOT / '.venv') -> None:
    """Go on in the environment, which is made first if need be.

    Returns where the interpreter already is the environment's; otherwise
    the process is replaced by one that runs ``script`` with the
    same arguments there.

    Args:
        script: File to run, usually the caller's ``__file__``.
        env: Folder of the environment.

    Raises:
        SystemExit: With one line, if the environment cannot be made.
    """
    if not (ROOT / 'setup.py').is_file():
        _fail('needs a checkout of the repository, its tests and its '
              f'setup.py, and is installed in {ROOT}: clone it')
    python = prepare(env)
    if _inside(env):
        return
    # The environment's packages and no others.
    outside = ('PYTHONHOME', 'PYTHONPATH')
    variables = {k: v for k, v in os.environ.items() if k not in outside}
    variables['PYTHONNOUSERSITE'] = '1'
    sys.stdout.flush()
    os.execve(
        python,
        [str(python), str(Path(script).resolve()), *sys.argv[1:]], variables)


def prepare(env: Path) -> Path:
    """Make the environment unless a finished one is there.

    A mark in its folder says what was installed. An environment whose
    installation was cut short is made anew; one that was finished for other
    requirements is updated in place.

    Args:
        env: Folder of the environment.

    Returns:
        The environment's interpreter.

    Raises:
        SystemExit: With one line, if Python is too old or too new, if the
            folder holds something that this function did not make, or if a
            step of the installation fails.
    """
    python = env / 'bin' / 'python'
    wanted = _requirements_digest()
    mark = _read_mark(env)
    works = mark is not None and _runs(python)
    if works and mark == wanted:
        return python
    _check_python()
    if not (works and mark):
        if env.exists():
            if mark is None:
                _fail(f'{env} exists and was not made by this command: move '
                      'it out of the way')
            if _inside(env):
                _fail(f'{env} is unfinished: deactivate it and try again')
            shutil.rmtree(env)
        env.mkdir(parents=True)
        _write_mark(env, '')
        print(f'Making an environment in {env}', flush=True)
        _run([sys.executable, '-m', 'venv', str(env)],
             'making the environment (Debian and Ubuntu keep venv in the '
             'package python3-venv)')
    print('Installing: some gigabytes the first time', flush=True)
    _run([
        str(python), '-m', 'pip', 'install', '--disable-pip-version-check',
        '--editable', f'{ROOT}[{_EXTRAS}]'
    ], 'the installation')
    _write_mark(env, wanted)
    return python


def _check_python() -> None:
    found = sys.version_info[:2]
    if not OLDEST_PYTHON <= found <= NEWEST_PYTHON:
        oldest, newest, this = ('.'.join(map(str, version)) for version in (
            OLDEST_PYTHON, NEWEST_PYTHON, sys.version_info[:3]))
        _fail(f'needs Python {oldest} to {newest}, this is {this}: run it '
              f'with another, such as python{newest}')


def _inside(env: Path) -> bool:
    return Path(sys.prefix).resolve() == env.resolve()


def _requirements_digest() -> str:
    return hashlib.sha256(
        (ROOT / 'setup.py').read_bytes() + _EXTRAS.encode()).hexdigest()


def _read_mark(env: Path) -> str | None:
    """Digest of what is installed, '' if unfinished, None if not ours."""
    try:
        return str(json.loads((env / _MARK).read_text())['requirements'])
    except (OSError, ValueError, KeyError):
        return None


def _write_mark(env: Path, digest: str) -> None:
    (env / _MARK).write_text(json.dumps({'requirements': digest}) + '\n')


def _runs(python: Path) -> bool:
    """Whether the interpreter is there and the one it links to, too."""
    try:
        return subprocess.run([str(python), '-c', '']).returncode == 0
    except OSError:
        return False


def _run(command: list[str], what: str) -> None:
    try:
        code = subprocess.run(command).returncode
    except KeyboardInterrupt:
        _fail('interrupted; the same command starts again')
    if code != 0:
        _fail(f'{what} failed with exit code {code}, see above')


def _fail(message: str) -> NoReturn:
    print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr)
    sys.exit(2)
