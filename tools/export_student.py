"""Write a checkpoint's student as a file that mmpretrain loads."""
from __future__ import annotations

import argparse

from command_line import one_line_errors

from wsld_plugin.checkpoints import export_student


def main() -> None:
    """Export, and print the path of the file as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'checkpoint', help='checkpoint of a distiller or of a classifier')
    parser.add_argument(
        'out',
        help='a folder, or a folder and the beginning of the file name; '
        '_{date}-{hash}.pth is added')
    args = parser.parse_args()
    with one_line_errors():
        student = export_student(args.checkpoint, args.out)
    kind = 'averaged (EMA)' if student.averaged else 'trained'
    print(f"The student's {kind} weights:")
    print(student.path)


if __name__ == '__main__':
    main()
