"""What the weights of the soft labels do while a student trains."""
from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any
from unittest import mock

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ..functional.blocks import block_positions, cut
from ..functional.dense import without_channel
from ..functional.inputs import has_class_indices, split_labels
from ..functional.regularization import regularization_samples
from ..functional.weight import log_cross_entropy, wsld_weight
from ..losses import WSLDLoss
from .undo import train_within

# In the order of the rows in _block_sums.
_MEANS = ('weight_mean', 'regularization_ratio', 'ce_student', 'ce_teacher',
          'top1_student', 'top1_teacher', 'agreement')
_QUANTILES = {'weight_p05': 0.05, 'weight_p50': 0.5, 'weight_p95': 0.95}
_NAMES = (*_MEANS, *_QUANTILES)
# The weights are counted in this many steps from 0 to 1, because counts of
# batches and of ranks add up and quantiles do not.
_STEPS = 1000


@HOOKS.register_module()
class WSLDMonitorHook(Hook):
    """Log what each ``WSLDLoss`` of the model sees, as ``wsld/...``.

    Over the batch of each iteration that mmengine's ``LoggerHook`` writes:

    - ``weight_mean``, ``weight_p05``, ``weight_p50``, ``weight_p95``: mean of
      :func:`wsld_plugin.functional.wsld_weight` and its quantiles to 0.001.
    - ``regularization_ratio``: share of regularization samples, in [0, 1],
      by magnitude, at the loss's ``tau``.
    - ``ce_student``, ``ce_teacher``: cross-entropies at temperature 1, nats.
    - ``top1_student``, ``top1_teacher``: accuracy in percent; of class
      probabilities the largest counts as the label.
    - ``agreement``: share of equal top-1 classes, in [0, 1].

    Positions of dense predictions count one by one, ignored ones not at all,
    ranks together, and so do the ``accumulative_counts`` iterations of a
    step. Several losses are told apart by their names in the model, as
    ``wsld/<name>/...``, less the word "loss", which mmengine would take for
    part of an objective. One without valid labels is missing from the line.

    The training is left as it is, to the bit.
    """

    def before_run(self, runner: Runner) -> None:
        """Have the losses given back even if the training fails."""
        self._undo = ExitStack()
        train_within(runner, self._undo)

    def before_train(self, runner: Runner) -> None:
        """Find the losses and the hooks that decide when to look."""
        model: Any = runner.model
        if is_model_wrapper(model):
            model = model.module
        losses = {
            path: module
            for path, module in model.named_modules()
            if isinstance(module, WSLDLoss)
        }
        if not losses:
            runner.logger.warning('WSLDMonitorHook: the model has no WSLDLoss')
        self._prefixes = _prefixes(list(losses))
        self._watched = [
            (loss, self._watching(prefix, loss))
            for prefix, loss in zip(self._prefixes, losses.values())
        ]
        self._loggers = [
            one for one in runner.hooks if isinstance(one, LoggerHook)]
        # Sums of the iterations that make an optimizer step.
        self._recent: deque[dict[str, Any]] = deque(
            maxlen=getattr(runner.optim_wrapper, '_accumulative_counts', 1))

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Watch the losses if this iteration counts for a line of the log."""
        self._recent.append({})
        if any(
                self._is_logged(runner, batch_idx + ahead)
                for ahead in range(self._recent.maxlen or 1)):
            for loss, watching in self._watched:
                # No forward hook, of which compiled code takes no notice.
                self._undo.enter_context(
                    mock.patch.object(loss, 'forward', watching))

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         *_: Any, **__: Any) -> None:
        """Stop watching; hand over what will be logged."""
        self._undo.close()
        if self._watched and self._is_logged(runner, batch_idx):
            self._publish(runner)

    def _is_logged(self, runner: Runner, batch_idx: int) -> bool:
        """Whether a LoggerHook writes a line after this iteration."""
        loader = runner.train_dataloader
        return any(
            hook.every_n_inner_iters(batch_idx, hook.interval) or
            (hook.end_of_epoch(loader, batch_idx) and
             (not hook.ignore_last or len(loader) <= hook.interval))
            for hook in self._loggers)

    def _watching(self, prefix: str, loss: WSLDLoss) -> Callable[..., Tensor]:
        """A loss's ``forward`` that adds up what it is given."""
        forward = loss.forward

        def add_up(student: Tensor, teacher: Tensor, gt_labels: Tensor,
                   teacher_labels: Any = None) -> None:
            gt_labels = without_channel(gt_labels, student)
            # A loss may be called more than once in an iteration.
            sums = _sums(student, teacher, gt_labels, loss)
            self._recent[-1][prefix] = sums + self._recent[-1].get(prefix, 0)

        if hasattr(getattr(torch, 'compiler', None), 'disable'):
            add_up = torch.compiler.disable(add_up)

        @wraps(forward)
        def forward_and_add_up(*args: Any, **kwargs: Any) -> Tensor:
            value = forward(*args, **kwargs)
            add_up(*args, **kwargs)
            return value

        return forward_and_add_up

    def _publish(self, runner: Runner) -> None:
        """Add up the ranks and update the message hub."""
        width = len(_MEANS) + 1 + _STEPS + 1
        table = torch.zeros(len(self._prefixes), width, dtype=torch.float64)
        for row, prefix in zip(table, self._prefixes):
            sums = [one[prefix] for one in self._recent if prefix in one]
            if sums:
                row += torch.stack(sums).cpu().sum(0, dtype=torch.float64)
        all_reduce(table)
        hub = runner.message_hub
        for row, prefix in zip(table, self._prefixes):
            keys = [f'train/{prefix}/{name}' for name in _NAMES]
            values = _statistics(row)
            for key, value in zip(keys, values):
                hub.update_scalar(key, value)
            # What stays would be logged again as if it were new.
            for key in keys[len(values):]:
                hub.log_scalars.pop(key, None)


def _prefixes(paths: list[str]) -> list[str]:
    """Short distinct names of losses, without the word, from their paths."""
    if len(paths) == 1:
        return ['wsld']
    parts = [[
        part for part in (
            re.sub('loss(es)?', '', part, flags=re.IGNORECASE).strip('_')
            for part in path.split('.')) if part
    ] for path in paths]
    for chosen in ([part[-1:] for part in parts], parts):
        names = ['.'.join(name) for name in chosen]
        if all(names) and len(set(names)) == len(names):
            return [f'wsld/{name}' for name in names]
    return [f'wsld/{number}' for number in range(len(paths))]


@torch.no_grad()
def _sums(student: Tensor, teacher: Tensor, gt_labels: Tensor,
          loss: WSLDLoss) -> Tensor:
    """Sums of ``_MEANS`` over the rows, their count, and weights' counts."""
    # Autocast would take products in half precision.
    with torch.autocast(student.device.type, enabled=False):
        sums = [
            _block_sums(
                cut(student, at), cut(teacher, at), cut(gt_labels, at), loss)
            for at in block_positions(student)
        ]
    return torch.stack(sums).sum(0)


def _block_sums(student: Tensor, teacher: Tensor, gt_labels: Tensor,
                loss: WSLDLoss) -> Tensor:
    """What :func:`_sums` adds up, by operations that the host awaits not."""
    top_s, top_t = student.argmax(1), teacher.argmax(1)
    gt_labels, ignored = split_labels(gt_labels, loss.ignore_index)
    if ignored is None:
        ignored = torch.zeros_like(top_s, dtype=torch.bool)
    top = (gt_labels if has_class_indices(gt_labels) else gt_labels.argmax(1))
    weight = wsld_weight(student, teacher, gt_labels, loss.eps)
    regularizing = regularization_samples(
        student, teacher, gt_labels, tau=loss.tau)
    # One more step for what is ignored; a mean of nan tells of others.
    step = (weight.nan_to_num() * _STEPS).round().long()
    step = step.masked_fill(ignored, _STEPS + 1).flatten()
    counts = step.new_zeros(_STEPS + 2).scatter_add_(0, step,
                                                     torch.ones_like(step))
    rows = torch.stack([
        row.to(weight)
        for row in (weight, regularizing,
                    log_cross_entropy(student, gt_labels).exp(),
                    log_cross_entropy(teacher, gt_labels).exp(),
                    top_s == top, top_t == top, top_s == top_t, ~ignored)
    ])
    sums = rows.masked_fill(ignored, 0).flatten(1).sum(1)
    return torch.cat([sums, counts[:-1].to(sums)])


def _statistics(row: Tensor) -> list[float]:
    """Values of ``_NAMES`` from sums and counts; none without rows."""
    *sums, count = row[:len(_MEANS) + 1].tolist()
    if count == 0:
        return []
    means = [
        value / count * (100 if name.startswith('top1') else 1)
        for name, value in zip(_MEANS, sums)
    ]
    reached = row[len(_MEANS) + 1:].cumsum(0)
    wanted = count * torch.tensor([*_QUANTILES.values()], dtype=row.dtype)
    steps: list[int] = torch.searchsorted(reached, wanted).tolist()
    return means + [step / _STEPS for step in steps]
