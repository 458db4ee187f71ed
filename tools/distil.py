"""Distil a teacher into a student on a folder of pictures.

The pictures lie as CLASS/*.jpg, or as {train,val,test}/CLASS/*.jpg. What the
call finds, the student among it, is in the work dir; its report.html tells
all. The same command again goes on where it was cut.
"""
from __future__ import annotations

import argparse
import os
import signal

from _start import start


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--data', required=True, metavar='FOLDER', help='the pictures')
    add('--teacher', action='append', metavar='NETWORK',
        help="mmpretrain's NAME, timm:NAME, torchvision:NAME, hf:NAME, "
        'python:MODULE.FUNCTION, CONFIG.py@CHECKPOINT.pth or the folder of a '
        'run; @none starts from random weights, @FILE from those (default: '
        'resnet34); repeat it for several, which are averaged')
    add('--student', metavar='NETWORK',
        help="a classifier of mmpretrain's, likewise (default: resnet18)")
    add('--work-dir', metavar='FOLDER',
        help='default: work_dirs/distil_ and the name of the data')
    add('--epochs', type=int, metavar='N',
        help='of the student (default: 30)')
    add('--teacher-epochs', type=int, metavar='N',
        help='of each teacher (default: as the student)')
    for name, what in (('tau', 'temperature'),
                       ('alpha', 'weight of the soft labels')):
        add(f'--{name}', type=number, metavar='X',
            help=f'{what}, or auto: by short trials (default: auto)')
    add('--baseline', action='store_true',
        help='train the student alone, too, to compare')
    add('--combine', metavar='WHAT',
        help='average probabilities (default) or logits of the teachers')
    add('--teacher-weights', nargs='+', type=float, metavar='X',
        help='of the teachers in the average (default: equal)')
    add('--size', type=int, metavar='PIXELS',
        help="height and width of the student's input (default: by the "
        "pictures')")
    add('--batch-size', type=int, metavar='N', help='pictures of a step')
    add('--no-flip', dest='flip', action='store_false',
        help='a mirrored picture is of another class')
    add('--seed', type=int, metavar='N', help='default: 0')
    add('--no-onnx', dest='onnx', action='store_false',
        help='write no ONNX file')
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='what starts the processes of a distributed run')
    add('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def number(text: str) -> float | str:
    """A number if it is one; the call says what is wrong with a text."""
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    """Distil, and say what was found and where it is."""
    args = vars(parse_args())
    rank = args.pop('local_rank', None)
    if rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(rank))
    # A batch system's way to end a job, as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from mmengine.dist import is_main_process

    from wsld_plugin import command_line
    from wsld_plugin.analysis import print_table
    from wsld_plugin.datasets import PictureFolderError
    from wsld_plugin.distillation import DistilError, TrainingError, distil
    from wsld_plugin.models import NetworkError
    with command_line.one_line_errors(DistilError, NetworkError,
                                      PictureFolderError, TrainingError):
        result = distil(**args)
        if is_main_process():
            pictures = sum(result.metrics['data']['pictures'].values())
            print_table(result.table, f'Distilled on {pictures} pictures')
            for name in ('student', 'onnx', 'config', 'report'):
                print(f'{name + ":":8} {getattr(result, name)}')
    command_line.leave_group()


if __name__ == '__main__':
    start(main)
