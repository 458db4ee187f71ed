"""Make sure that the teacher is the teacher one meant."""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, autocast
from torch import nn

from ..caching import CachedTeacher
from ..checkpoints import load_strictly
from .teachers import distillers


@HOOKS.register_module()
class ValidateTeacherHook(Hook):
    """Check a distiller's teacher once, before training starts.

    mmrazor's ``SingleTeacherDistill`` loads ``teacher_ckpt`` without looking
    at missing or unfitting weights. This hook refuses a file that does not
    fit the teacher exactly, then runs the teacher over the student's
    validation set, with the student's evaluator and preprocessor, and logs
    the metrics as ``teacher/...``. The student's own metrics, the teacher's
    state and the random numbers of the training are not affected. A resumed
    run finds the metrics in its message hub, under ``teacher_metrics``, and
    does not measure them again.
    """

    def before_run(self, runner: Runner) -> None:
        """Refuse weights that do not fit, warn if there are none.

        Raises:
            CheckpointMismatchError: If ``model.teacher_ckpt`` lacks weights
                of the teacher, has others, or others' shapes.
        """
        distiller = distillers(runner.model).get('teacher')
        cfg = runner.cfg.get('model')
        if distiller is None or not isinstance(cfg, dict):
            return
        path = cfg.get('teacher_ckpt')
        if isinstance(distiller.teacher, CachedTeacher):
            # It has no weights, and compares those of its cache itself.
            return
        if path:
            load_strictly(distiller.teacher, path, 'model.teacher_ckpt')
        elif not (distiller.teacher.init_cfg or distiller.teacher_trainable
                  or runner.cfg.get('resume') or runner.cfg.get('load_from')):
            runner.logger.warning(
                'model.teacher_ckpt is not set: the teacher has random '
                'weights.')

    def before_train(self, runner: Runner) -> None:
        """Measure the teachers, unless that was done before a resume."""
        known = runner.message_hub.get_info('teacher_metrics')
        if runner.val_loop is None or known is not None:
            return
        metrics: dict[str, float] = {}
        for name, distiller in distillers(runner.model).items():
            if isinstance(distiller.teacher, CachedTeacher):
                runner.logger.info(
                    'The %s is not validated: its cache holds its answers '
                    'to the training set only.', name)
                continue
            for key, value in _validate(runner, distiller).items():
                metrics[f'{name}/{key}'] = float(value)
        if not metrics:
            return
        runner.logger.info('The teacher on the validation set: %s', '  '.join(
            f'{key}: {value:.4f}' for key, value in metrics.items()))
        runner.visualizer.add_scalars(metrics, step=runner.iter)
        runner.message_hub.update_info('teacher_metrics', metrics)


@torch.no_grad()
def _validate(runner: Runner, distiller: Any) -> dict[str, float]:
    """Run a distiller's teacher over the validation set."""
    loop = runner.val_loop
    runner.logger.info('Validating the teacher on %d batches.',
                       len(loop.dataloader))
    with _evaluating(distiller.teacher), _fork_random_state():
        for batch in loop.dataloader:
            with autocast(enabled=loop.fp16):
                data = distiller.data_preprocessor(batch, False)
                outputs = distiller.teacher(**data, mode='predict')
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        return loop.evaluator.evaluate(len(loop.dataloader.dataset))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _fork_random_state() -> Iterator[None]:
    """Draw random numbers for a while as if none had been drawn."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
