"""Which samples a soft label regularizes rather than teaches."""
from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import by_block
from .inputs import (
    check_inputs,
    check_number,
    has_class_indices,
    split_labels,
    widen,
)
from .weight import log_odds_against_


@torch.no_grad()
def regularization_samples(student: Tensor,
                           teacher: Tensor,
                           gt_labels: Tensor,
                           *,
                           tau: float,
                           ignore_index: int = -100) -> Tensor:
    r"""Whether the variance part of distillation dominates each sample.

    With the cross-entropy at temperature 1, the soft-label loss at
    :math:`\tau` and the student's logit :math:`s_y` of the label,

    .. math::
        a = \partial L_{ce} / \partial s_y = p(s)_y - 1, \quad
        g = \partial L_{kd} / \partial s_y
          = \tau (p(s/\tau)_y - p(t/\tau)_y)

    and the test is :math:`|g - a| > |a|`: the paper takes the cross-entropy
    to lower the bias, and what the soft-label loss adds to it to lower the
    variance. For class probabilities y both are the derivatives along the
    label, :math:`\sum_k y_k \, \partial L / \partial s_k`, which is the same
    for one-hot labels.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``.
        teacher: Logits of the same shape.
        gt_labels: As for :func:`wsld_loss`.
        ignore_index: As for :func:`wsld_loss`.
        tau: Temperature of the soft-label loss, above 0.

    Returns:
        Booleans ``(N, *)``; False at positions that do not count, and where
        both derivatives underflow to 0.

    Source: arXiv 2102.00650, its test for regularization samples.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> teacher = torch.tensor([[0.0, 4.0], [4.0, 0.0]])
        >>> labels = torch.tensor([0, 0])  # the first teacher is wrong
        >>> regularization_samples(student, teacher, labels, tau=2.0)
        tensor([ True, False])
    """
    tau = check_number('tau', tau, above=0)
    check_inputs(student, teacher, gt_labels, ignore_index)
    labels, ignored = split_labels(gt_labels, ignore_index)
    kind = by_block(partial(larger_variance, tau=tau), student, teacher,
                    labels)
    return kind if ignored is None else kind & ~ignored


def larger_variance(student: Tensor, teacher: Tensor, labels: Tensor,
                    tau: float) -> Tensor:
    """:func:`regularization_samples` of checked arguments."""
    a, g = _label_gradients(student, teacher, labels, tau)
    # With g - a written out, a g far below a does not round away.
    twice = 2 * a
    return (g > twice.clamp(min=0)) | (g < twice.clamp(max=0))


def _label_gradients(student: Tensor, teacher: Tensor, gt_labels: Tensor,
                     tau: float) -> tuple[Tensor, Tensor]:
    """``a`` and ``g``, from log-odds: both keep their digits when tiny."""
    s, t = widen(student), widen(teacher)
    if not has_class_indices(gt_labels):
        y = gt_labels.to(s.dtype)
        mass = y.sum(1, keepdim=True)
        wrong = _odds_against(s).sigmoid()
        # p * mass - y, which is -wrong where a one-hot label is 1.
        a = (y * (mass - y - mass * wrong)).sum(1)
        gap = _probability_gap(_odds_against(s / tau), _odds_against(t / tau))
        return a, (y * gap).sum(1) * tau
    index = gt_labels.long().unsqueeze(1)
    a = -log_odds_against_(s.clone(), index).sigmoid()
    gap = _probability_gap(
        log_odds_against_(s / tau, index), log_odds_against_(t / tau, index))
    return a.squeeze(1), gap.squeeze(1) * tau


def _odds_against(logits: Tensor) -> Tensor:
    """``log((1 - p) / p)`` of every class, ``(N, C, *)``."""
    log_probs = logits.log_softmax(1)
    # Only the likeliest class can have a p whose 1 - p cancels.
    top = logits.argmax(1, keepdim=True)
    odds = torch.log1p(-log_probs.exp()) - log_probs
    return odds.scatter(1, top, log_odds_against_(logits.clone(), top))


def _probability_gap(odds_s: Tensor, odds_t: Tensor) -> Tensor:
    """``p_s - p_t`` from the log-odds against each."""
    # As a product nothing cancels, whether both are near 0 or near 1.
    low, high = torch.minimum(odds_s, odds_t), torch.maximum(odds_s, odds_t)
    log_gap = F.logsigmoid(-low) + F.logsigmoid(high)
    gap = log_gap.exp() * -torch.expm1(low - high)
    # Equal odds may be infinite (a single class).
    gap = gap.masked_fill(low == high, 0.0)
    return torch.where(odds_s < odds_t, gap, -gap)
