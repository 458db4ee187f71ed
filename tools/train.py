"""Train what a config describes."""
from __future__ import annotations

import argparse
from typing import Any

from _start import add_run_arguments, start


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or from the latest one in the '
        'work dir')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 on a GPU, bfloat16 on the CPU')
    parser.add_argument(
        '--no-validate',
        action='store_true',
        help='do not validate during training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate to the run's batch size")
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='stop the workers of the validation after each epoch')
    add_run_arguments(parser)
    return parser.parse_args()


def train_config(args: argparse.Namespace) -> Any:
    """Config of the training that the command line asks for."""
    from wsld_plugin import command_line
    cfg = command_line.read_run_config(args, 'train')
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if command_line.goes_on(cfg.work_dir):
        cfg.resume, cfg.load_from = True, None
    if args.amp:
        command_line.use_mixed_precision(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            command_line.fail(
                '--auto-scale-lr needs auto_scale_lr.base_batch_size, the '
                "batch size that the config's learning rate is meant for")
        cfg.auto_scale_lr.enable = True
    for split in ('train', 'val', 'test'):
        command_line.set_dataloader_defaults(
            cfg,
            split,
            # Workers that outlive an epoch keep their random state, which a
            # resumed run could not restore.
            persistent_workers=(split != 'train'
                                and not args.no_persistent_workers),
            pin_memory=not args.no_pin_memory)
    return cfg


def main() -> None:
    """Train."""
    args = parse_args()
    from wsld_plugin import command_line
    with command_line.one_line_errors():
        command_line.build_runner(train_config(args)).train()
    command_line.leave_group()


if __name__ == '__main__':
    start(main)
