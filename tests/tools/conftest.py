"""Run the tools as a user does."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


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
