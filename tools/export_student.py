"""Write a checkpoint's student as a file of its own."""
from __future__ import annotations

import argparse

from command_line import fail, one_line_errors

from wsld_plugin import compat
from wsld_plugin.checkpoints import export_student
from wsld_plugin.checkpoints.deployment import (
    SUFFIXES,
    DeploymentError,
    deploy_student,
)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'checkpoint', help='checkpoint of a distiller or of a classifier')
    parser.add_argument(
        'out',
        help='a folder, or a folder and the beginning of the file name; '
        '_{date}-{hash}.pth is added, or the suffix of another format')
    parser.add_argument(
        '--format',
        choices=['pth', *SUFFIXES],
        default='pth',
        help='pth for mmpretrain (default); the others run without it and '
        'are kept only if they compute what the student does')
    others = parser.add_argument_group('all formats but pth')
    others.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='take pictures as OpenCV reads them and normalise them inside '
        'the file')
    others.add_argument(
        '--images',
        type=int,
        default=100,
        metavar='N',
        help='pictures of the test set to compare on (default: 100)')
    others.add_argument(
        '--opset', type=int, help="of ONNX (default: torch's choice)")
    others.add_argument(
        '--config',
        help='config file, for a checkpoint that does not hold its config')
    args = parser.parse_args()
    if args.format == 'pth' and (args.with_preprocessing or args.opset
                                 or args.config or args.images != 100):
        parser.error('--with-preprocessing, --images, --opset and --config '
                     'need another --format than pth')
    return args


def main() -> None:
    """Export, and print the path of the file as the last line."""
    args = parse_args()
    compat.quiet()
    with one_line_errors():
        if args.format == 'pth':
            student = export_student(args.checkpoint, args.out)
            kind = 'averaged (EMA)' if student.averaged else 'trained'
            print(f"The student's {kind} weights:")
            print(student.path)
        else:
            deploy(args)


def deploy(args: argparse.Namespace) -> None:
    """Write another format than mmpretrain's and print the comparison."""
    try:
        deployed = deploy_student(
            args.checkpoint,
            args.out,
            args.format,
            config=args.config,
            opset=args.opset,
            with_preprocessing=args.with_preprocessing,
            images=args.images)
    except DeploymentError as error:
        fail(error)
    print(f'Compared with the student on {deployed.images} pictures: largest '
          f'difference of a logit {deployed.largest_difference:.2g} (largest '
          f'logit {deployed.largest_logit:.3g}), same class for '
          f'{deployed.equal_top1}/{deployed.images}.')
    print(deployed.path)


if __name__ == '__main__':
    main()
