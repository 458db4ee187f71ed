"""Distil one tiny ResNet into another through Runner: a program for tests.

Usage: tiny_training.py WORK_DIR [--launcher pytorch] [--amp DTYPE]
[--epochs N] [--resume] [--quiet]
"""
from __future__ import annotations

import argparse
import sys
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Dataset

import wsld_plugin


@DATASETS.register_module()
class RandomPictures(Dataset):
    """Sixteen noise pictures of 32x32 with labels 0 to 9."""

    metainfo: ClassVar = dict(classes=tuple('0123456789'))

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmpretrain.structures import DataSample
        noise = torch.Generator().manual_seed(index)
        return dict(
            inputs=torch.randint(
                256, (3, 32, 32), dtype=torch.uint8, generator=noise),
            data_samples=DataSample().set_gt_label(index % 10))


def tiny_resnet() -> dict[str, Any]:
    """A ResNet-18 with an eighth of the channels."""
    return dict(
        _scope_='mmpretrain',
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=18, base_channels=8),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=10,
            in_channels=64,
            loss=dict(type='CrossEntropyLoss'),
            topk=(1, )))


def distiller() -> dict[str, Any]:
    """Model config: a tiny ResNet learns from another by soft labels."""
    recorders = dict(fc=dict(type='ModuleOutputs', source='head.fc'))
    return dict(
        type='mmrazor.SingleTeacherDistill',
        data_preprocessor=dict(
            type='mmpretrain.ClsDataPreprocessor',
            mean=[127.5] * 3,
            std=[127.5] * 3),
        architecture=tiny_resnet(),
        teacher=tiny_resnet(),
        distiller=dict(
            type='mmrazor.ConfigurableDistiller',
            student_recorders=recorders,
            teacher_recorders=recorders,
            distill_losses=dict(
                loss_kd=dict(type='mmrazor.KLDivergence', tau=2)),
            loss_forward_mappings=dict(
                loss_kd=dict(
                    preds_S=dict(from_student=True, recorder='fc'),
                    preds_T=dict(from_student=False, recorder='fc')))))


def config(work_dir: str, epochs: int = 1) -> Config:
    """Runner config around :func:`distiller`."""
    loader = dict(
        batch_size=4, num_workers=0, dataset=dict(type='RandomPictures'))
    return Config(
        dict(
            default_scope='mmrazor',
            work_dir=work_dir,
            model=distiller(),
            train_dataloader=dict(
                sampler=dict(type='DefaultSampler', shuffle=True), **loader),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
            val_dataloader=dict(
                sampler=dict(type='DefaultSampler', shuffle=False), **loader),
            val_cfg=dict(type='mmrazor.SingleTeacherDistillValLoop'),
            val_evaluator=dict(type='mmpretrain.Accuracy', topk=(1, )),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(
                    type='CheckpointHook',
                    interval=1,
                    save_param_scheduler=False)),
            randomness=dict(seed=0),
            env_cfg=dict(dist_cfg=dict(backend='nccl'))))


def main() -> None:
    """Train as the command line says, print what tests look at."""
    parser = argparse.ArgumentParser()
    parser.add_argument('work_dir')
    parser.add_argument('--launcher', default='none')
    parser.add_argument('--amp')
    parser.add_argument('--epochs', type=int, default=1)
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--quiet', action='store_true')
    args = parser.parse_args()
    if args.quiet:
        wsld_plugin.compat.quiet()
    cfg = config(args.work_dir, args.epochs)
    cfg.launcher = args.launcher
    cfg.resume = args.resume
    if args.amp:
        cfg.optim_wrapper.update(
            type='AmpOptimWrapper', dtype=args.amp, loss_scale='dynamic')
    wsld_plugin.compat.prepare_amp(cfg)
    wsld_plugin.compat.prepare_distributed(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    total = sum(
        float(parameter.detach().double().abs().sum())
        for parameter in runner.model.parameters())
    # One call, or the ranks' lines mix.
    sys.stdout.write(
        f'rank {runner.rank} of {runner.world_size}: iter {runner.iter}, '
        f'{type(runner.model).__name__}, weights {total:.10e}\n')


if __name__ == '__main__':
    main()
