"""The WSLD loss in the form that ``torch.compile`` turns into fast loops.

The algebra is that of :mod:`.fused`: everything relative to the label's
class, in bits. But where eager mode works block by block, a compiler wants
whole tensors, few sweeps and nothing kept between them: one sweep for the
largest logits, one for all sums, and in the backward pass one that computes
the exponentials again and writes the gradient. No tensor of the logits' size
is stored in between.
"""
from __future__ import annotations

import math
from typing import Any, Optional

import torch
from torch import Tensor

from .inputs import has_class_indices
from .weight import wsld_weight

_LN2 = math.log(2.0)
# As in fused.py: from there on equal shifts of two margins do not matter.
_LINEAR_BITS = 64.0


def _not_label(logits: Tensor, label: Tensor) -> Tensor:
    classes = torch.arange(
        logits.shape[1], device=label.device, dtype=label.dtype)
    return classes.view(-1, *[1] * (logits.dim() - 2)) != label


def _relative_to_label(logits: Tensor, mask: Tensor, bits: float,
                       dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Logits below the other classes' largest, that one, label's margin."""
    scaled = logits.to(dtype) * bits
    # Finite, because 0 * -inf would spoil the sums.
    a = torch.where(mask, scaled, torch.finfo(dtype).min / 2**24)
    top = a.amax(1, keepdim=True)
    # Summed rather than gathered: it is part of the sweep for the sums.
    return a - top, top, _sum(torch.where(mask, 0.0, scaled)) - top


def _sum(terms: Tensor) -> Tensor:
    return terms.sum(1, keepdim=True)


def _cross_entropy(x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and what turns exponentials to probabilities."""
    away = (-x.abs()).exp2()
    behind = x < 0
    v = torch.where(behind, total - 1 + away, total * away)
    share = torch.where(behind, torch.ones_like(away), away) / (1 + v)
    return v.log1p() - _LN2 * x.clamp(max=0), share


class _CompiledWSLD(torch.autograd.Function):
    """Sums forward, exponentials again backward."""

    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any, student: Tensor, teacher: Tensor, label: Tensor,
            weight: Optional[Tensor], scale: Tensor, tau: float,
            eps: float) -> Tensor:
        dtype = scale.dtype
        bits = 1 / (tau * _LN2)
        mask = _not_label(student, label)
        a_s, top_s, x_s = _relative_to_label(student, mask, bits, dtype)
        a_t, top_t, x_t = _relative_to_label(teacher, mask, bits, dtype)
        q_s, q_t = a_s.exp2(), a_t.exp2()
        total_s, total_t = _sum(q_s), _sum(q_t)
        ce_s, k_s = _cross_entropy(x_s, total_s)
        _, k_t = _cross_entropy(x_t, total_t)
        if weight is None:
            if tau == 2:
                one_s, one_t = _sum(q_s * q_s), _sum(q_t * q_t)
            else:
                one_s = _sum((a_s * tau).exp2())
                one_t = _sum((a_t * tau).exp2())
            x_s1, x_t1 = x_s * tau, x_t * tau
            if not eps:
                excess = torch.minimum(x_s1, x_t1) - _LINEAR_BITS
                excess = excess.clamp(min=0)
                x_s1, x_t1 = x_s1 - excess, x_t1 - excess
            ce_s1, _ = _cross_entropy(x_s1, one_s)
            ce_t1, _ = _cross_entropy(x_t1, one_t)
            weight = -torch.expm1(-(ce_s1 / (ce_t1 + eps)))
        weighted = weight * scale * tau
        wrong_s, wrong_t = total_s * k_s, total_t * k_t
        soft = (wrong_t * x_s - _sum(q_t * a_s) * k_t) * _LN2 + ce_s
        ctx.bits = bits
        ctx.save_for_backward(student, teacher, label, top_s, top_t,
                              k_s * weighted, k_t * weighted,
                              (wrong_t - wrong_s) * weighted)
        return (soft * weighted * tau).squeeze(1)

    @staticmethod
    def backward(  # type: ignore[override]
            ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        (student, teacher, label, top_s, top_t, by_s, by_t,
         at_label) = ctx.saved_tensors
        by_row = grad_output.unsqueeze(1)
        dtype = by_s.dtype
        q_s = (student.to(dtype) * ctx.bits - top_s).exp2()
        q_t = (teacher.to(dtype) * ctx.bits - top_t).exp2()
        grad = torch.where(
            _not_label(student, label),
            q_s * (by_s * by_row) - q_t * (by_t * by_row), at_label * by_row)
        return (grad.to(student.dtype), *[None] * 6)


def compiled_wsld_loss(student: Tensor, teacher: Tensor, gt_labels: Tensor,
                       factor: Tensor, ignore_index: int, tau: float,
                       eps: float, total: bool) -> Tensor:
    """WSLD loss of each row times ``factor``, or their sum.

    Arguments and value are those of :func:`~.fused.fused_wsld_loss`; meant
    to be called while ``torch.compile`` traces.
    """
    if has_class_indices(gt_labels):
        valid = gt_labels != ignore_index
        scale = (valid * factor).unsqueeze(1)
        # A class that does not exist does no harm in rows that do not count.
        label = gt_labels.unsqueeze(1)
        weight = None
    else:
        weight = wsld_weight(student, teacher, gt_labels, eps).unsqueeze(1)
        weight = weight.to(factor.dtype)
        scale = factor.expand(weight.shape)
        # Any class serves as y; the likeliest loses no digits.
        label = gt_labels.argmax(1, keepdim=True)
    # Compared with each class: the fewer bits, the more at once.
    rows = _CompiledWSLD.apply(student, teacher, label.int(), weight, scale,
                               tau, eps)
    return rows.sum() if total else rows
