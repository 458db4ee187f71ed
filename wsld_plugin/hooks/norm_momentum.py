"""Running statistics of BatchNorm in short trainings."""
from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from .teachers import distillers

# The share of a training whose steps the statistics remember.
_SHARE = 0.02
_MOST = 0.1  # torch's default


@HOOKS.register_module()
class NormMomentumHook(Hook):
    """Let BatchNorm's running statistics keep up with a short training.

    They remember about ``1 / momentum`` steps. Networks made for hundreds of
    thousands of steps have a momentum of 0.01 or less (MobileNetV3,
    EfficientNet): after a few hundred steps such statistics still mix in
    those of the random start, and the network guesses although it has
    learnt. So each momentum is at least 50 / steps, and no more than torch's
    0.1 unless it was. Trainings of 5,000 steps keep a momentum of 0.01. A
    distiller's teacher is left as it is.
    """

    def before_train(self, runner: Runner) -> None:
        """Raise what is too low for the number of steps."""
        least = min(_MOST, 1 / (_SHARE * runner.max_iters))
        spared = {
            part
            for distiller in distillers(runner.model).values()
            for part in distiller.teacher.modules()
        }
        raised = [
            part for part in runner.model.modules()
            if isinstance(part, _BatchNorm) and part not in spared
            and part.momentum is not None and part.momentum < least
        ]
        for part in raised:
            part.momentum = least
        if raised:
            runner.logger.info(
                'The momentum of %d BatchNorm layers is %.3g, for a training '
                'of %d steps.', len(raised), least, runner.max_iters)
