"""The per-sample weight of weighted soft label distillation."""
from __future__ import annotations

import torch
from torch import Tensor

from .cross_entropy import log_cross_entropy_
from .inputs import check_number, widen


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
        gradient.

    Raises:
        TypeError: If ``eps`` is no number.
        ValueError: If ``eps`` is negative or not finite.

    Source:
        arXiv 2102.00650, the weight in front of the soft-label loss.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> wsld_weight(z, z, torch.tensor([0]))  # 1 - 1/e
        tensor([0.6321])
    """
    eps = check_number('eps', eps, least=0)
    # Both in one go, because small batches pay for the calls.
    log_student, log_teacher = log_cross_entropy_(
        torch.cat((widen(student), widen(teacher))),
        torch.cat((gt_labels, gt_labels))).chunk(2)
    if eps:
        log_teacher = (log_teacher.exp() + eps).log()
    return -torch.expm1(-(log_student - log_teacher).exp())
