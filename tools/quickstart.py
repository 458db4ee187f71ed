"""Distil ResNet-34 into ResNet-18 on handwritten digits, from nothing.

Makes an environment in the folder .venv of this repository, installs what is
needed, writes scikit-learn's digits as pictures and distils on them as
tools/distil.py does: a teacher, the student alone, the student with WSLD, and
a report. Needs Python and a package index, no data set. The same command
again reuses what is finished and goes on where it was interrupted.
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


def main() -> None:
    """Enter the environment, distil and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir', type=Path, metavar='DIR',
        default=_environment.ROOT / 'work_dirs' / 'quickstart',
        help='folder for all that is written (default: work_dirs/quickstart)')
    parser.add_argument(
        '--epochs', type=int, default=12, metavar='N',
        help='of each training (default: 12)')
    args = parser.parse_args()
    _environment.enter(__file__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import torch

    from wsld_plugin.analysis import print_table
    from wsld_plugin.command_line import one_line_errors
    from wsld_plugin.datasets import write_digits
    from wsld_plugin.distillation import DistilError, TrainingError, distil
    began = time.monotonic()
    torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
    with one_line_errors(DistilError, TrainingError):
        pictures = args.work_dir / 'pictures'
        write_digits(pictures)
        found = distil(
            pictures, 'resnet34@none', 'resnet18', epochs=args.epochs, tau=4,
            alpha=1, baseline=True, flip=False, onnx=False,
            work_dir=args.work_dir / 'distilled')
        print_table(found.table, 'Handwritten digits, 539 test scans')
        print(f'student: {found.student}\nreport:  {found.report}')
        took = round(time.monotonic() - began)
        print(f'Done in {took // 60} min {took % 60} s.')


if __name__ == '__main__':
    start(main)
