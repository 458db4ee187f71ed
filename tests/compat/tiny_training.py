"""Distil one tiny ResNet into another through Runner: a program for tests.

Usage: tiny_training.py WORK_DIR [--launcher pytorch] [--amp DTYPE] [--quiet]
"""
import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

import wsld_plugin
from wsld_plugin.command_line import leave_group

TRAINING = Path(__file__)
DIGITS = Path(__file__).parents[1] / 'tools' / 'tiny_distillation.py'


def config(work_dir, epochs=1, amp=None):
    """Four steps an epoch, with mmengine's and mmrazor's parts, not ours."""
    cfg = Config.fromfile(DIGITS)
    cfg.merge_from_dict({
        'work_dir': work_dir,
        'train_cfg.max_epochs': epochs,
        'train_dataloader.batch_size': 4,
        'default_hooks.checkpoint.type': 'CheckpointHook',
        'default_hooks.checkpoint.save_best': None,
        'val_cfg.type': 'mmrazor.SingleTeacherDistillValLoop',
    })
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.num_workers = 0
        loader.dataset.indices = 16
    cfg.update(custom_hooks=[], param_scheduler=[])
    if amp:
        cfg.optim_wrapper.update(
            type='AmpOptimWrapper', dtype=amp, loss_scale='dynamic')
    return cfg


def main():
    """Train as the command line says, print what tests look at."""
    parser = argparse.ArgumentParser()
    parser.add_argument('work_dir')
    parser.add_argument('--launcher', default='none')
    parser.add_argument('--amp')
    parser.add_argument('--quiet', action='store_true')
    args = parser.parse_args()
    if args.quiet:
        wsld_plugin.compat.quiet()
    cfg = config(args.work_dir, amp=args.amp)
    cfg.launcher = args.launcher
    wsld_plugin.compat.prepare_amp(cfg)
    wsld_plugin.compat.prepare_distributed(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    total = sum(float(parameter.detach().double().abs().sum())
                for parameter in runner.model.parameters())
    # One write, or the ranks' lines mix.
    print(f'rank {runner.rank} of {runner.world_size}: iter {runner.iter}, '
          f'{type(runner.model).__name__}, weights {total:.10e}\n', end='',
          flush=True)
    # Or gloo's threads may abort the process as it ends.
    leave_group()


if __name__ == '__main__':
    main()
