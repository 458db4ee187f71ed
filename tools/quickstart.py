"""Distil ResNet-34 into ResNet-18 on handwritten digits, from nothing.

Makes an environment in the folder .venv of this repository, installs what is
needed, trains the teacher, then the student without and with WSLD, exports
the student, predicts with it and prints a table. Needs Python and a package
index, no data set. The same command again reuses what is finished and goes
on where it was interrupted.
"""
from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path

import _environment
from _start import start

# The networks are too small for more.
MOST_THREADS = 8


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dirs',
        type=Path,
        default=_environment.ROOT / 'work_dirs',
        metavar='DIR',
        help='folder for everything that is written (default: work_dirs)')
    parser.add_argument(
        '--seeds',
        type=int,
        default=3,
        metavar='N',
        help='trainings of each student (default: 3)')
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f'argument --seeds: expected 1 or more, got {args.seeds}')
    return args


def main() -> None:
    """Enter the environment, distil and print."""
    args = parse_args()
    _environment.enter(__file__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import torch

    from wsld_plugin.analysis import print_table
    from wsld_plugin.command_line import one_line_errors
    from wsld_plugin.distillation import TrainingError, distil_digits
    began = time.monotonic()
    torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
    with one_line_errors(TrainingError):
        found = distil_digits(args.work_dirs, args.seeds)
        seeds = f'{args.seeds} seed{"s" if args.seeds > 1 else ""}'
        print_table(found.table,
                    f'Handwritten digits, accuracy in % ({seeds})')
        for name in ('student', 'curves', 'predictions'):
            print(f'{name + ":":12} {getattr(found, name)}')
        took = round(time.monotonic() - began)
        print(f'Done in {took // 60} min {took % 60} s.')


if __name__ == '__main__':
    start(main)
