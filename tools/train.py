"""Train what a config describes."""
from __future__ import annotations

import argparse

import torch
from command_line import (
    add_common_arguments,
    fail,
    leave_group,
    one_line_errors,
    prepare_devices,
    read_config,
    set_dataloader_defaults,
)
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner


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
    add_common_arguments(parser)
    return parser.parse_args()


def train_config(args: argparse.Namespace) -> Config:
    """Config of the training that the command line asks for."""
    cfg = read_config(args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.amp:
        use_mixed_precision(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            fail('--auto-scale-lr needs auto_scale_lr.base_batch_size, the '
                 "batch size that the config's learning rate is meant for")
        cfg.auto_scale_lr.enable = True
    # Workers that outlive an epoch keep their random state, which a resumed
    # run could not restore.
    set_dataloader_defaults(
        cfg.get('train_dataloader'),
        persistent_workers=False,
        pin_memory=not args.no_pin_memory)
    for split in ('val', 'test'):
        set_dataloader_defaults(
            cfg.get(f'{split}_dataloader'),
            persistent_workers=not args.no_persistent_workers,
            pin_memory=not args.no_pin_memory)
    return cfg


def use_mixed_precision(cfg: Config) -> None:
    """Wrap the optimizer for float16 on a GPU, bfloat16 on the CPU."""
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        fail(f'--amp cannot replace optim_wrapper.type={wrapper}, expected '
             'OptimWrapper')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if not torch.cuda.is_available():
        cfg.optim_wrapper.setdefault('dtype', 'bfloat16')


def main() -> None:
    """Train."""
    args = parse_args()
    with one_line_errors():
        cfg = train_config(args)
        prepare_devices(cfg)
        build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
        build(cfg).train()
    leave_group()


if __name__ == '__main__':
    main()
