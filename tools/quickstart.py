"""Distil ResNet-34 into ResNet-18 on handwritten digits, from nothing.

Makes an environment in the folder .venv of this repository, installs what is
needed, trains the teacher, then the student without and with WSLD, exports
the student, predicts with it and prints a table. Needs Python and a package
index, no data set. The same command again reuses what is finished and goes
on where it was interrupted.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import _environment as environment


def main() -> None:
    """Parse the command line, enter the environment and run."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dirs',
        type=Path,
        default=environment.ROOT / 'work_dirs',
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
    environment.enter(__file__)

    import distil_digits
    distil_digits.run(args.work_dirs, args.seeds)


if __name__ == '__main__':
    main()
