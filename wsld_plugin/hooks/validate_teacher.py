"""See how good the teacher is before a student learns from it."""
from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, autocast

from .teachers import distillers
from .undo import random_state_kept


@HOOKS.register_module()
class ValidateTeacherHook(Hook):
    """Validate a distiller's teacher once, before training starts.

    The teacher runs over the student's validation set, with the student's
    evaluator and preprocessor, and the metrics are logged as
    ``teacher/...``. The student's own metrics, the teacher's state and the
    random numbers of the training are not affected. A resumed run finds the
    metrics in its message hub, under ``teacher_metrics``, and does not
    measure them again.
    """

    def before_train(self, runner: Runner) -> None:
        """Measure the teachers, unless that was done before a resume."""
        known = runner.message_hub.get_info('teacher_metrics')
        if runner.val_loop is None or known is not None:
            return
        metrics: dict[str, float] = {}
        for name, distiller in distillers(runner.model).items():
            if next(distiller.teacher.parameters(), None) is None:
                runner.logger.info(
                    'The %s is not validated: it has no weights.', name)
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
    teacher = distiller.teacher
    modes = [(part, part.training) for part in teacher.modules()]
    teacher.eval()
    try:
        with random_state_kept(teacher):
            for batch in loop.dataloader:
                with autocast(enabled=loop.fp16):
                    data = distiller.data_preprocessor(batch, False)
                    outputs = teacher(**data, mode='predict')
                loop.evaluator.process(data_samples=outputs, data_batch=batch)
            return loop.evaluator.evaluate(len(loop.dataloader.dataset))
    finally:
        for part, training in modes:
            part.training = training
