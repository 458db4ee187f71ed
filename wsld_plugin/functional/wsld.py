"""The weighted soft label distillation loss: weight, loss, reduction.

Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A
Bias-Variance Tradeoff Perspective", ICLR 2021, arXiv 2102.00650.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor

from .blocks import by_block
from .inputs import (
    check_inputs,
    check_number,
    check_one_of,
    is_traced,
    is_transformed,
    split_labels,
    widen,
)
from .schemes import Weighting, check_weighting, sample_weight
from .soft_labels import (
    TRANSFORMS,
    SoftLoss,
    kl_loss,
    parse_soft_loss,
    soft_label_loss,
)

REDUCTIONS = ('none', 'mean', 'sum')
UNLABELLED = ('ignore', 'teacher', 'uniform')


def wsld_loss(student: Tensor,
              teacher: Tensor,
              gt_labels: Tensor,
              tau: float = 1.0,
              loss_weight: float = 1.0,
              eps: float = 0.0,
              reduction: str = 'mean',
              ignore_index: int = -100,
              num_classes: Optional[int] = None,
              weighting: Weighting = 'wsld',
              soft_loss: SoftLoss = 'kl',
              transform: Optional[str] = None,
              unlabelled: str = 'ignore') -> Tensor:
    r"""Soft-label cross-entropy, each sample weighted by its WSLD weight.

    .. math::
        L = \alpha \, \tau^2 \, \mathrm{mean}_i \Bigl[ - w_i \sum_k
        p^t_{ik} \log p^s_{ik} \Bigr], \quad p = \mathrm{softmax}(z/\tau)

    with :math:`w` from :func:`wsld_weight`. The value holds the teacher's
    entropy, as in both published codes; gradients equal those of the
    weighted KL divergence.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``, any floating dtype.
        teacher: Logits of the same shape. They get no gradient.
        gt_labels: Class indices ``(N, *)`` of an integer dtype, or class
            probabilities shaped like the logits (mixup, cutmix, smoothing).
        tau: Temperature of both softmaxes, above 0.
        loss_weight: The paper's alpha.
        eps: Added to the teacher's cross-entropy inside the weight, in nats.
            0 is the paper's formula; 1e-7 reproduces the published code.
        reduction: ``'mean'`` over the rows that are not ignored, ``'sum'``,
            or ``'none'`` for ``(N, *)``. Rows of weight 0 count.
        ignore_index: Class index of rows without a label. They do not
            count, whatever their logits hold; but see ``unlabelled``.
        num_classes: If given, logits with another class count are refused.
        weighting: Which weight each row gets, see :func:`sample_weight`;
            ``'uniform'`` is plain distillation.
        soft_loss: What is weighted, see :func:`soft_label_loss`.
        transform: What ``soft_loss`` sees of the logits, likewise. The
            weight sees them as they are.
        unlabelled: What becomes of rows labelled ``ignore_index``:
            ``'ignore'``, they do not count; ``'teacher'``, its likeliest
            class is the label; ``'uniform'``, likewise, but with weight 1.

    Returns:
        Nats times ``tau**2``, in float32 (float64 for float64 logits). A
        batch without rows that count gives 0 with zero gradient.

    Raises:
        TypeError: If an argument has an unusable type or dtype.
        ValueError: If shapes, class counts, labels or settings are wrong,
            or ``eps`` is given with another scheme than ``'wsld'``.

    Numerics:
        Everything is computed in float32 or wider, also under autocast, and
        the gradient is rounded to the logits' dtype last. Neither the weight
        nor the teacher carries a gradient. Classes that are masked with
        ``-inf`` in both networks count 0.

    Example:
        >>> import torch
        >>> z = torch.zeros(1, 2)
        >>> wsld_loss(z, z, torch.tensor([0]))  # (1 - 1/e) ln 2
        tensor(0.4382)
    """
    check_inputs(student, teacher, gt_labels, ignore_index, num_classes)
    check_settings(tau, eps, reduction, weighting, soft_loss, transform,
                   unlabelled)
    labels, missing = split_labels(gt_labels, ignore_index)
    ignored = missing if unlabelled == 'ignore' else None
    teacher = teacher.detach()
    if missing is not None and unlabelled != 'ignore':
        labels = torch.where(missing, teacher.argmax(1), labels)
    weight = sample_weight(
        student.detach(), teacher, labels, weighting, tau=tau, eps=eps,
        ignored=None if unlabelled == 'teacher' else missing)
    if missing is not None and unlabelled == 'uniform':
        weight = weight.masked_fill(missing, 1.0)
    plain_kl = soft_loss in ('kl', {'type': 'kl'}) and transform is None
    if plain_kl and not is_transformed(student):
        rows = _WeightedKL.apply(student, teacher, weight, ignored, tau)
    else:
        rows = _weighted_rows(
            student, teacher, weight, ignored,
            partial(soft_label_loss, gt_labels=labels, soft_loss=soft_loss,
                    tau=tau, transform=transform))
    return loss_weight * _reduce(rows, ignored, reduction)


def check_settings(tau: float, eps: float, reduction: str,
                   weighting: Weighting, soft_loss: SoftLoss = 'kl',
                   transform: Optional[str] = None,
                   unlabelled: str = 'ignore') -> None:
    """Refuse what :func:`wsld_loss` cannot compute with."""
    check_number('tau', tau, above=0)
    check_one_of('reduction', reduction, REDUCTIONS)
    check_one_of('transform', transform, TRANSFORMS)
    check_one_of('unlabelled', unlabelled, UNLABELLED)
    check_weighting(weighting, eps)
    if soft_loss != 'kl':  # Of the other checks small batches feel nothing.
        parse_soft_loss(soft_loss)


def _weighted_rows(student: Tensor, teacher: Tensor, weight: Tensor,
                   ignored: Optional[Tensor],
                   loss: Callable[..., Tensor]) -> Tensor:
    """The formula itself, rows ``(N, *)``."""
    if ignored is not None:
        # First, because 0 times the gradient of NaN would be NaN.
        student, teacher = (logits.masked_fill(ignored.unsqueeze(1), 0.0)
                            for logits in (student, teacher))
    rows = weight * loss(student, teacher)
    return rows if ignored is None else rows.masked_fill(ignored, 0.0)


def _gradient(student: Tensor, teacher: Tensor, factor: Tensor,
              ignored: Optional[Tensor], tau: float) -> Tensor:
    """``factor * (softmax(s/tau) - softmax(t/tau))`` for each row."""
    grad = (widen(student) * (1 / tau)).softmax(1)
    grad = grad - (widen(teacher) * (1 / tau)).softmax(1)
    grad = grad * factor.unsqueeze(1)
    if ignored is not None:
        grad = grad.masked_fill(ignored.unsqueeze(1), 0.0)
    return grad.to(student.dtype)


class _WeightedKL(torch.autograd.Function):
    """:func:`_weighted_rows` that keeps nothing of the logits' size but them.

    The backward pass computes both softmaxes again, block by block.
    """

    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor,
            ignored: Optional[Tensor], tau: float) -> Tensor:
        # Autograd saves no tensor that was made under inference_mode.
        inferred = not is_traced() and teacher.is_inference()
        ctx.inferred = teacher if inferred else None
        ctx.save_for_backward(student, None if inferred else teacher, weight,
                              ignored)
        ctx.tau = tau
        rows = weight * by_block(
            partial(kl_loss, gt_labels=None, tau=tau), student, teacher)
        return rows if ignored is None else rows.masked_fill(ignored, 0.0)

    @staticmethod
    def backward(  # type: ignore[override]
            ctx: Any, grad_rows: Tensor) -> tuple[Optional[Tensor], ...]:
        student, teacher, weight, ignored = ctx.saved_tensors
        teacher = ctx.inferred if teacher is None else teacher
        grad = by_block(
            partial(_gradient, tau=ctx.tau), student, teacher,
            weight * grad_rows * ctx.tau, ignored)
        return grad, None, None, None, None


def _reduce(rows: Tensor, ignored: Optional[Tensor],
            reduction: str) -> Tensor:
    """Mean over the rows that count, sum, or all of them."""
    if reduction == 'none':
        return rows
    if reduction == 'sum':
        return rows.sum()
    if ignored is None:
        return rows.sum() / max(1, rows.numel())
    # A tensor, not a number: reading it would wait for the device.
    return rows.sum() / (~ignored).sum().clamp(min=1)
