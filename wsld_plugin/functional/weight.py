"""The weight, and cross-entropy that keeps its digits when it is tiny."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import check_number, has_class_indices, widen

# Below this log-odds, log(softplus(x)) equals x to float64's rounding.
_LINEAR_BELOW = -40.0
# The exponential of this is nothing next to 1, in float64 too.
_NOTHING = -80.0


@torch.no_grad()
def wsld_weight(student: Tensor,
                teacher: Tensor,
                gt_labels: Tensor,
                eps: float = 0.0) -> Tensor:
    r"""Weight of each sample's soft-label loss.

    .. math:: w = 1 - \exp(-\mathrm{CE}_s / (\mathrm{CE}_t + \epsilon))

    with both cross-entropies at temperature 1. It is :math:`1 - 1/e` where
    student and teacher are equally good, tends to 1 where the student is
    worse and to 0 where it is better. The ratio is formed as a difference of
    logarithms, so it stays exact for confident models; ``1 - exp(-r)`` is
    taken as ``-expm1(-r)``.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``, any floating dtype.
        teacher: Logits of the same shape.
        gt_labels: Class indices ``(N, *)`` in ``[0, C)``, or class
            probabilities shaped like the logits.
        eps: Added to the teacher's cross-entropy, in nats, not negative. 0
            is the paper's formula, 1e-7 what its published code computes.

    Returns:
        ``(N, *)`` in [0, 1], float32 (float64 for float64 logits), without
        gradient. A negative ``eps`` is a ValueError.

    Source: arXiv 2102.00650, the weight in front of the soft-label loss.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> wsld_weight(z, z, torch.tensor([0]))  # 1 - 1/e
        tensor([0.6321])
    """
    eps = check_number('eps', eps, least=0)
    if not has_class_indices(gt_labels):
        gt_labels = widen(gt_labels)
    # Both in one go, because small batches pay for the calls.
    log_student, log_teacher = _log_cross_entropy_(
        torch.cat((widen(student), widen(teacher))),
        torch.cat((gt_labels, gt_labels))).chunk(2)
    if eps:
        log_teacher = (log_teacher.exp() + eps).log()
    log_ratio = log_student - log_teacher
    # Equal ones may be infinite, of a label that both have masked.
    log_ratio = log_ratio.masked_fill(log_student == log_teacher, 0.0)
    return -torch.expm1(-log_ratio.exp())


def log_cross_entropy(logits: Tensor, gt_labels: Tensor) -> Tensor:
    r"""Natural logarithm of each row's cross-entropy at temperature 1.

    With the log-odds against the label,
    :math:`\ell = \log\sum_{j \ne y} e^{z_j} - z_y`, the cross-entropy is
    :math:`\mathrm{softplus}(\ell)`, and its logarithm tends to :math:`\ell`
    itself for a confident model. Nothing cancels, while
    ``logsumexp(z) - z_y`` is exactly 0 in float32 beyond about 17 nats of
    margin. For class probabilities the same is done around the largest
    logit, and the other terms :math:`y_k (\max z - z_k)` are all positive.

    Args:
        logits: ``(N, C)`` or ``(N, C, *)``, any floating dtype.
        gt_labels: Class indices ``(N, *)`` in ``[0, C)``, or class
            probabilities shaped like ``logits``.

    Returns:
        ``(N, *)`` in float32 (float64 for float64 logits): log of nats, the
        dtype's lowest number where no other class has a share.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 100.0]])
        >>> log_cross_entropy(z, torch.tensor([1]))
        tensor([-100.])
    """
    return _log_cross_entropy_(widen(logits).clone(), gt_labels)


def _log_cross_entropy_(logits: Tensor, gt_labels: Tensor) -> Tensor:
    """:func:`log_cross_entropy` that overwrites its logits."""
    if has_class_indices(gt_labels):
        index = gt_labels.long().unsqueeze(1)
        return _log_softplus(log_odds_against_(logits, index)).squeeze(1)
    probs = gt_labels.to(logits.dtype)
    top, anchor = logits.max(dim=1, keepdim=True)
    # 0 times the infinite gap of a masked class would be no number.
    gaps = (top - logits).clamp_(max=torch.finfo(logits.dtype).max)
    at_anchor = _log_softplus(log_odds_against_(logits, anchor)).squeeze(1)
    return torch.logaddexp(at_anchor + probs.sum(1).log(),
                           (probs * gaps).sum(1).log())


def log_odds_against_(logits: Tensor, index: Tensor) -> Tensor:
    """``log((1 - p) / p)`` of the classes ``index``, both ``(N, 1, *)``.

    Overwrites the logits.
    """
    own = logits.gather(1, index)
    # Not -inf, of which there may be nothing but.
    logits.scatter_(1, index, torch.finfo(logits.dtype).min)
    top = logits.amax(1, keepdim=True)
    # Some CPUs take a hundred times longer for an exponential of 0.
    logits.sub_(top).scatter_(1, index, _NOTHING)
    return logits.exp_().sum(1, keepdim=True).log_().add_(top).sub_(own)


def _log_softplus(odds: Tensor) -> Tensor:
    """``log(log(1 + exp(odds)))``, which is below ``odds`` and tends to it."""
    exact = F.softplus(odds.clamp(min=_LINEAR_BELOW), threshold=50).log()
    return torch.minimum(exact, odds)
