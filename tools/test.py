"""Test a student: alone, or taken out of a distiller's checkpoint."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from _start import add_run_arguments, start

SUFFIXES = {'pred': ('.pkl', '.pickle'), 'metrics': ('.json', )}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, of a distillation or of a classifier')
    parser.add_argument(
        'checkpoint', help='checkpoint, of a distiller or of a classifier')
    parser.add_argument(
        '--out', help='file for the predictions (.pkl) or metrics (.json)')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        default='pred',
        help='what to write to --out (default: pred, the predictions)')
    parser.add_argument(
        '--amp', action='store_true', help='test in mixed precision')
    parser.add_argument(
        '--show-dir', help='folder for the images with their predictions')
    parser.add_argument(
        '--show', action='store_true', help='show the images in a window')
    parser.add_argument(
        '--interval', type=int, default=1, help='of the images shown')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='of each, in seconds')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="average over the config's augmentations, or over flips")
    add_run_arguments(parser)
    args = parser.parse_args()
    if args.out_item == 'metrics' and args.out is None:
        parser.error('--out-item needs --out')
    suffixes = SUFFIXES[args.out_item]
    if args.out is not None and not args.out.endswith(suffixes):
        parser.error(f'--out {args.out}: {args.out_item} goes to a file '
                     f'whose name ends with {" or ".join(suffixes)}')
    return args


def test_config(args: argparse.Namespace) -> Any:
    """Config of the test that the command line asks for."""
    from wsld_plugin import command_line
    from wsld_plugin.checkpoints import student_model
    cfg = command_line.read_run_config(args, 'test')
    # The teacher plays no part, and need not be downloaded.
    cfg.model = student_model(cfg.model)
    cfg.resume, cfg.load_from = False, None
    if args.amp:
        cfg.test_cfg = dict(cfg.get('test_cfg') or {}, fp16=True)
    if args.show or args.show_dir is not None:
        command_line.show_pictures(
            cfg, show=args.show, folder=args.show_dir,
            wait_time=args.wait_time, interval=args.interval)
    if args.tta:
        command_line.use_test_time_augmentation(cfg)
    return cfg


def main() -> None:
    """Test, and print the metrics as the last line."""
    args = parse_args()
    from mmengine.dist import is_main_process

    from wsld_plugin import command_line
    from wsld_plugin.checkpoints import write_atomically
    with command_line.one_line_errors():
        metrics = command_line.evaluate_student(
            test_config(args), args.checkpoint,
            args.out if args.out_item == 'pred' else None)
        if is_main_process():
            line = json.dumps(metrics, default=lambda number: number.tolist())
            if args.out_item == 'metrics':
                # Complete or not at all: others take it for the result.
                write_atomically(Path(args.out), line)
            print(line)
    command_line.leave_group()


if __name__ == '__main__':
    start(main)
