"""Write a checkpoint's student as a file of its own."""
from __future__ import annotations

import argparse

from _start import start


def main() -> None:
    """Export, and print the path of the file as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('checkpoint', help='of a distiller or of a classifier')
    add('out', help='a folder, or a folder and the beginning of the file '
        'name; _{date}-{hash}.pth is added, or .onnx')
    add('--onnx', action='store_true',
        help='a file that runs without mmpretrain, kept only if it computes '
        'what the student does')
    add = parser.add_argument_group('with --onnx').add_argument
    add('--with-preprocessing', action='store_true',
        help='take pictures as OpenCV reads them and normalise them inside '
        'the file')
    add('--config',
        help='config file, for a checkpoint that does not hold its config')
    args = parser.parse_args()
    if not args.onnx and (args.with_preprocessing or args.config):
        parser.error('--with-preprocessing and --config need --onnx')
    from wsld_plugin.checkpoints import export_onnx, export_student
    from wsld_plugin.command_line import one_line_errors
    with one_line_errors():
        if args.onnx:
            onnx = export_onnx(
                args.checkpoint, args.out, config=args.config,
                with_preprocessing=args.with_preprocessing)
            print(f'Compared with the student on {onnx.images} pictures: '
                  'largest difference of a logit '
                  f'{onnx.largest_difference:.2g} (largest logit '
                  f'{onnx.largest_logit:.3g}), same class for '
                  f'{onnx.equal_top1}/{onnx.rows}.')
            print(onnx.path)
        else:
            student = export_student(args.checkpoint, args.out)
            kind = 'averaged (EMA)' if student.averaged else 'trained'
            print(f"The student's {kind} weights:")
            print(student.path)


if __name__ == '__main__':
    start(main)
