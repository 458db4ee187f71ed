"""Run the tests in the repository's own environment.

Takes pytest's arguments.
"""
from __future__ import annotations

import os
import sys

import environment

if __name__ == '__main__':
    environment.enter(__file__)
    os.chdir(environment.ROOT)
    os.execv(sys.executable,
             [sys.executable, '-m', 'pytest', *sys.argv[1:]])
