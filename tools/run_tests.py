"""Run the tests in the repository's own environment, two at a time.

Takes pytest's arguments; `-n 0` runs one after another.
"""
from __future__ import annotations

import os
import subprocess
import sys

import environment

if __name__ == '__main__':
    environment.enter(__file__)
    os.chdir(environment.ROOT)
    # At its first import yapf, which mmengine imports, writes a cache that a
    # second process must not read meanwhile.
    subprocess.run([sys.executable, '-c', 'import mmengine'], check=True)
    # Each test process has a core of its own.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.execv(sys.executable, [
        sys.executable, '-m', 'pytest', '-n', '2', '--dist', 'loadfile',
        *sys.argv[1:]
    ])
