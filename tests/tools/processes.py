"""The tools and Python as processes, as a user starts them."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[2] / 'tools'
STUDENT, DISTILLATION = (Path(__file__).with_name(f'tiny_{name}.py')
                         for name in ('student', 'distillation'))


def start_tool(name: str, *args: object) -> subprocess.Popen:
    """Start a tool, output to a pipe."""
    command = [sys.executable] if name.endswith('.py') else ['bash']
    return subprocess.Popen(
        [*command, str(TOOLS / name), *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable))


def finished(run: subprocess.Popen) -> str:
    """What a process said that ends as it should."""
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output[-3000:]
    return output


def run_python(*args: object, **variables: str
               ) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments and more environment variables."""
    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1', **variables))
