"""Run the tests in the repository's own environment, two at a time.

Makes the environment in the folder .venv of this repository, if need be.
Takes pytest's arguments: `tests/losses`, `-k NAME`, `-x`; `-n 0` runs one
after another.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys

import _environment
from _start import start


def main() -> None:
    """Enter the environment and become pytest."""
    parser = argparse.ArgumentParser(
        usage='%(prog)s [-h] [arguments of pytest]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.parse_known_args()
    _environment.enter(__file__)
    os.chdir(_environment.ROOT)
    # At its first import yapf, which mmengine imports, writes a cache that a
    # second process must not read meanwhile.
    subprocess.run([sys.executable, '-c', 'import mmengine'], check=True)
    # Each test process has a core of its own.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.execv(sys.executable, [
        sys.executable, '-m', 'pytest', '-n', '2', '--dist', 'loadfile',
        '--no-loadscope-reorder', *sys.argv[1:]
    ])


if __name__ == '__main__':
    start(main)
