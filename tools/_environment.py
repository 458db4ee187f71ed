"""Make and enter the environment that the commands in the README run in.

Only the standard library is used: this runs before anything is installed.
"""
from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 9), (3, 13)
_EXTRAS = 'openmmlab,distil,deploy,experiments,test'
_MARK = 'wsld_plugin.txt'


def enter(script: str, env: Path = ROOT / '.venv') -> None:
    """Go on in the environment, which is made first if need be.

    Returns where the interpreter already is the environment's; otherwise the
    process is replaced by one that runs ``script``, usually the caller's
    ``__file__``, with the same arguments there. One line and SystemExit if
    the environment cannot be made.
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

    A mark in its folder says for what it is finished. One that is unfinished
    or finished for other requirements is made anew, or where the interpreter
    is its own, updated in place; meanwhile nobody else is at it, and nothing
    that this function made it for is running in it.

    Returns the environment's interpreter; one line and SystemExit if Python
    is too old or too new, if the folder holds something that this function
    did not make, or if a step of the installation fails.
    """
    python, mark = env / 'bin' / 'python', env / _MARK
    wanted = _requirements_digest()

    def is_finished() -> bool:
        # Without the interpreter that it links to it is of no use.
        return (python.exists() and mark.exists()
                and mark.read_text() == wanted)

    # Held until this process ends, whatever program it becomes. It is on the
    # folder around, which stays, and may be read-only.
    lock = os.open(env.parent, os.O_RDONLY)
    os.set_inheritable(lock, True)
    _wait_for(lock, fcntl.LOCK_SH, env)
    if is_finished():
        return python
    _wait_for(lock, fcntl.LOCK_EX, env)
    if not is_finished():
        _install(env, python, mark, wanted)
    _wait_for(lock, fcntl.LOCK_SH, env)
    return python


def _wait_for(lock: int, kind: int, env: Path) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f'Waiting for what is at work in {env}', flush=True)
        fcntl.flock(lock, kind)


def _install(env: Path, python: Path, mark: Path, wanted: str) -> None:
    found = sys.version_info[:2]
    if not OLDEST_PYTHON <= found <= NEWEST_PYTHON:
        oldest, newest, this = ('.'.join(map(str, version)) for version in (
            OLDEST_PYTHON, NEWEST_PYTHON, sys.version_info[:3]))
        _fail(f'needs Python {oldest} to {newest}, this is {this}: run it '
              f'with another, such as python{newest}')
    if env.exists() and not mark.exists():
        _fail(f'{env} exists and was not made by this command: move it out '
              'of the way')
    if not _inside(env):
        print(f'Making an environment in {env}', flush=True)
        shutil.rmtree(env, ignore_errors=True)
        env.mkdir(parents=True)
        mark.touch()
        _run([sys.executable, '-m', 'venv', str(env)],
             'making the environment (Debian and Ubuntu keep venv in the '
             'package python3-venv)')
    mark.write_text('')
    print('Installing: some gigabytes the first time', flush=True)
    _run([
        str(python), '-m', 'pip', 'install', '--disable-pip-version-check',
        '--editable', f'{ROOT}[{_EXTRAS}]'
    ], 'the installation')
    mark.write_text(wanted)


def _requirements_digest() -> str:
    return hashlib.sha256(
        (ROOT / 'setup.py').read_bytes() + _EXTRAS.encode()).hexdigest()


def _inside(env: Path) -> bool:
    return Path(sys.prefix).resolve() == env.resolve()


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
