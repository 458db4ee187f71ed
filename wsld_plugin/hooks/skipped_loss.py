"""Run a frozen teacher without the loss that nobody reads."""
from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .fast_teacher import CODE_ERRORS, apart, reason, replace_forward
from .undo import random_state_kept


class SkippedLoss:
    """The forward pass of a frozen teacher, less its loss and metrics.

    In the first step the teacher runs for the loss and once more for its
    outputs alone, mmengine's ``mode='tensor'``. If all recorders get the
    same, it runs for these from then on.
    """

    def __init__(self, distiller: Any, recorders: list[Any],
                 undo: ExitStack) -> None:
        self._distiller, self._recorders = distiller, recorders
        self._teacher: nn.Module = distiller.teacher
        self._original = self._teacher.forward
        self._mode: str | None = None
        replace_forward(self._teacher, self, undo)

    def __call__(self, *args: Any, mode: str = 'tensor', **kwargs: Any) -> Any:
        """Run the teacher; what comes of 'loss' nobody reads in training."""
        if mode != 'loss' or not self._distiller.training:
            return self._original(*args, mode=mode, **kwargs)
        outputs = self._original(*args, mode=self._mode or mode, **kwargs)
        if self._mode is None:
            why = self._why_needed(args, kwargs)
            self._mode = 'loss' if why else 'tensor'
            print_log("FastStepHook: teacher's loss " +
                      (f'computed: {why}.' if why else 'not computed.'),
                      'current')
        return {} if self._mode == 'tensor' else outputs

    def _why_needed(self, args: Any, kwargs: Any) -> str:
        """Why the loss cannot be left out, found without a trace."""
        if any(part.training for part in self._teacher.modules()
               if isinstance(part, _BatchNorm)):
            return 'its BatchNorm is in training mode'
        device = next(self._teacher.parameters()).device
        recorded = [one.data_buffer for one in self._recorders]
        for one in self._recorders:
            one.reset_data_buffer()
        try:
            with random_state_kept(device):
                self._original(*args, mode='tensor', **kwargs)
            again = [one.data_buffer for one in self._recorders]
            same = apart(again, recorded) < 1e-5
            return '' if same else 'recorders get something else without it'
        except CODE_ERRORS as error:
            return reason(error)
        finally:
            for one, data in zip(self._recorders, recorded):
                one._data_buffer = data
