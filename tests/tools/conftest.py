"""Run the tools as a user does, or in this process where that is enough."""
from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture(scope='session')
def call_tool() -> Iterator[Callable[..., None]]:
    """Call a Python tool's ``main`` with command line arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))

        def call(name: str, *args: object) -> None:
            path = TOOLS / name
            spec = importlib.util.spec_from_file_location(
                f'tool_{path.stem}', path)
            assert spec is not None and spec.loader is not None
            tool = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(tool)
            patch.setattr(sys, 'argv', [str(path), *map(str, args)])
            tool.main()

        yield call


@pytest.fixture(scope='session')
def start_tool() -> Callable[..., subprocess.Popen]:
    """Start a tool as a process, output to a pipe."""

    def start(name: str, *args: object) -> subprocess.Popen:
        command = [sys.executable] if name.endswith('.py') else ['bash']
        environment = dict(
            os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable)
        return subprocess.Popen(
            [*command, str(TOOLS / name), *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment)

    return start
