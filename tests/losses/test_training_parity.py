"""Twelve real steps with mmrazor's loss and with ours: the same training.

In float64 and with a small learning rate, because training is chaotic:
rounding differences of float32 grow tenfold every few steps, until two runs
of the very same formula have little in common.
"""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

CONFIG = Path(__file__).parents[2] / 'configs' / 'wsld_r34_r18_digits.py'
STEPS, BATCH = 12, 8


class _Record(Hook):
    """Keep every step's losses."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.losses.append(outputs['distill.loss_wsld'].item())


def train(loss, work_dir):
    """Distilled student after ``STEPS`` steps, and the loss of each."""
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(work_dir)
    cfg.model.teacher_ckpt = None
    cfg.model.teacher.backbone.depth = 18
    cfg.model.distiller.distill_losses.loss_wsld = loss
    cfg.train_dataloader.batch_size = BATCH
    cfg.train_dataloader.dataset.indices = STEPS * BATCH
    cfg.train_cfg.max_epochs = 1
    cfg.optim_wrapper.optimizer.lr = 1e-4
    cfg.param_scheduler = []
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    cfg.experiment_name = loss['type']
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(cfg)
    runner.model.double()
    for network in (runner.model.student, runner.model.teacher):
        network.backbone.register_forward_pre_hook(
            lambda module, images: images[0].double())
    record = _Record()
    runner.register_hook(record)
    runner.train()
    return record.losses, runner.model.student.state_dict()


def test_twelve_steps_with_mmrazors_loss_and_with_ours(tmp_path):
    common = dict(tau=2, loss_weight=2.5, num_classes=10)
    theirs, their_student = train(
        dict(type='mmrazor.WSLD', **common), tmp_path / 'mmrazor')
    ours, our_student = train(
        dict(type='WSLDLoss', eps=1e-7, **common), tmp_path / 'ours')
    assert len(ours) == STEPS and abs(ours[0] / ours[-1] - 1) > 1e-3
    assert ours == pytest.approx(theirs, rel=1e-6)
    for name, weights in our_student.items():
        torch.testing.assert_close(
            weights, their_student[name], rtol=0, atol=1e-6)
