"""The weighted soft label distillation loss.

Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A
Bias-Variance Tradeoff Perspective", ICLR 2021, arXiv 2102.00650.
"""
from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from .compiled import compiled_wsld_loss
from .fused import fused_wsld_loss
from .inputs import (
    REDUCTIONS,
    check_inputs,
    has_class_indices,
    is_compiling,
    widen,
)
from .schemes import Weighting, check_weighting, sample_weight


def wsld_loss(student: Tensor,
              teacher: Tensor,
              gt_labels: Tensor,
              tau: float = 1.0,
              loss_weight: float = 1.0,
              eps: float = 0.0,
              reduction: str = 'mean',
              ignore_index: int = -100,
              num_classes: Optional[int] = None,
              weighting: Weighting = 'wsld') -> Tensor:
    r"""Soft-label cross-entropy, each sample weighted by its WSLD weight.

    .. math::
        L = \alpha \, \tau^2 \, \mathrm{mean}_i \Bigl[ - w_i \sum_k
        p^t_{ik} \log p^s_{ik} \Bigr], \quad p = \mathrm{softmax}(z/\tau)

    with :math:`w` from :func:`wsld_weight`. The value holds the teacher's
    entropy, as in both published codes; gradients equal those of the
    weighted KL divergence. In eager mode value and gradient come from one
    pass that keeps a single tensor of the logits' size; ``torch.compile``
    gets a form of the same algebra that suits a compiler. Other schemes than
    ``'wsld'`` are composed of torch's functions.

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
        ignore_index: Class index of rows that do not count.
        num_classes: If given, logits with another class count are refused.
        weighting: Which weight each row gets, see :func:`sample_weight`;
            ``'uniform'`` is plain distillation.

    Returns:
        Nats times ``tau**2``, in float32 (float64 for float64 logits). A
        batch without rows that count gives 0 with zero gradient.

    Raises:
        TypeError: If an argument has an unusable type or dtype.
        ValueError: If shapes, class counts, labels, ``reduction`` or
            ``weighting`` are wrong, or ``eps`` is given with another scheme
            than ``'wsld'``.

    Numerics:
        Everything is computed in float32 or wider, also under autocast.
        Neither the weight nor the teacher carries a gradient.

    Example:
        >>> import torch
        >>> z = torch.zeros(1, 2)
        >>> wsld_loss(z, z, torch.tensor([0]))  # (1 - 1/e) ln 2
        tensor(0.4382)
    """
    check_inputs(student, teacher, gt_labels, ignore_index, num_classes)
    check_reduction(reduction)
    check_weighting(weighting, eps)
    gt_labels, factor = _factor(student, teacher, gt_labels, loss_weight,
                                reduction, ignore_index)
    if weighting != 'wsld':
        return _composed(student, teacher.detach(), gt_labels, factor,
                         ignore_index, tau, eps, reduction != 'none',
                         weighting)
    loss = compiled_wsld_loss if is_compiling() else fused_wsld_loss
    return loss(student, teacher.detach(), gt_labels, factor, ignore_index,
                tau, eps, reduction != 'none')


def wsld_loss_reference(student: Tensor,
                        teacher: Tensor,
                        gt_labels: Tensor,
                        tau: float = 1.0,
                        loss_weight: float = 1.0,
                        eps: float = 0.0,
                        reduction: str = 'mean',
                        ignore_index: int = -100,
                        num_classes: Optional[int] = None,
                        weighting: Weighting = 'wsld') -> Tensor:
    """Same loss, composed of plain differentiable torch functions.

    This is the formula to read, and the path to take where a custom autograd
    function does not fit (``torch.func`` transforms, forward mode). It keeps
    several tensors of the logits' size. Arguments, value and errors are those
    of :func:`wsld_loss`.
    """
    check_inputs(student, teacher, gt_labels, ignore_index, num_classes)
    check_reduction(reduction)
    check_weighting(weighting, eps)
    gt_labels, factor = _factor(student, teacher, gt_labels, loss_weight,
                                reduction, ignore_index)
    return _composed(student, teacher.detach(), gt_labels, factor,
                     ignore_index, tau, eps, reduction != 'none', weighting)


def check_reduction(reduction: str) -> None:
    """Refuse a reduction that torch does not know.

    Raises:
        ValueError: If it is none of ``'none'``, ``'mean'`` and ``'sum'``.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be one of {REDUCTIONS}, got '
                         f'{reduction!r}')


def _composed(student: Tensor, teacher: Tensor, gt_labels: Tensor,
              factor: Tensor, ignore_index: int, tau: float, eps: float,
              total: bool, weighting: Weighting = 'wsld') -> Tensor:
    """The formula itself; arguments of :func:`fused_wsld_loss`, and more."""
    weight = sample_weight(student, teacher, gt_labels, weighting, tau=tau,
                           eps=eps, ignore_index=ignore_index)
    soft_labels = (widen(teacher) / tau).softmax(1)
    log_probs = (widen(student) / tau).log_softmax(1)
    rows = -tau**2 * weight * (soft_labels * log_probs).sum(1) * factor
    return rows.sum() if total else rows


def _factor(student: Tensor, teacher: Tensor, gt_labels: Tensor,
            loss_weight: float, reduction: str,
            ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels as int64 or probabilities, and every row's factor, a scalar."""
    double = torch.float64 in (student.dtype, teacher.dtype)
    factor = torch.full((), loss_weight, device=student.device,
                        dtype=torch.float64 if double else torch.float32)
    count: Union[int, Tensor] = max(1, student[:, 0].numel())
    if has_class_indices(gt_labels):
        gt_labels = gt_labels.long()
        # A tensor, not a number: reading it would wait for the device.
        count = (gt_labels != ignore_index).sum().clamp(min=1)
    return gt_labels, factor / count if reduction == 'mean' else factor
