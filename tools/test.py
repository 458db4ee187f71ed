"""Test a student: alone, or taken out of a distiller's checkpoint."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from _start import add_run_arguments, start

SUFFIXES = {'pred': ('.pkl', '.pickle'), 'metrics': ('.json', )}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file, of a distillation or of a classifier')
    add('checkpoint', help='of a distiller or of a classifier')
    add('--out', help='file for the predictions (.pkl) or metrics (.json)')
    add('--out-item', choices=['metrics', 'pred'], default='pred',
        help='what to write to --out (default: pred, the predictions)')
    add_run_arguments(parser)
    args = parser.parse_args()
    if args.out_item == 'metrics' and args.out is None:
        parser.error('--out-item needs --out')
    suffixes = SUFFIXES[args.out_item]
    if args.out is not None and not args.out.endswith(suffixes):
        parser.error(f'--out {args.out}: {args.out_item} goes to a file '
                     f'whose name ends with {" or ".join(suffixes)}')
    return args


def main() -> None:
    """Test, and print the metrics as the last line."""
    args = parse_args()
    from mmengine.dist import is_main_process

    from wsld_plugin import command_line
    from wsld_plugin.checkpoints import student_model, write_atomically
    with command_line.one_line_errors():
        cfg = command_line.read_run_config(args, 'test')
        # The teacher plays no part, and need not be downloaded.
        cfg.model = student_model(cfg.model)
        cfg.resume, cfg.load_from = False, None
        predictions = args.out if args.out_item == 'pred' else None
        metrics = command_line.evaluate_student(
            cfg, args.checkpoint, predictions)
        if is_main_process():
            line = json.dumps(metrics, default=lambda number: number.tolist())
            if args.out_item == 'metrics':
                # Complete or not at all: others take it for the result.
                write_atomically(Path(args.out), line.encode())
            print(line)
    command_line.leave_group()


if __name__ == '__main__':
    start(main)
