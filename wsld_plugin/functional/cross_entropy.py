"""Cross-entropy that keeps its relative accuracy when it is tiny."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import has_class_indices, widen

# Below this log-odds, log(softplus(x)) equals x to float64's rounding.
_LINEAR_BELOW = -40.0


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
        ``(N, *)`` in float32 (float64 for float64 logits): log of nats,
        ``-inf`` where the cross-entropy is exactly 0.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 100.0]])
        >>> log_cross_entropy(z, torch.tensor([1]))
        tensor([-100.])
    """
    logits = widen(logits)
    if has_class_indices(gt_labels):
        return _log_cross_entropy_at(logits, gt_labels.long().unsqueeze(1))
    probs = gt_labels.to(logits.dtype)
    top, anchor = logits.max(dim=1, keepdim=True)
    at_anchor = _log_cross_entropy_at(logits, anchor) + probs.sum(1).log()
    gap = (probs * (top - logits)).sum(1)
    return torch.logaddexp(at_anchor, gap.log())


def _log_cross_entropy_at(logits: Tensor, index: Tensor) -> Tensor:
    """``log_cross_entropy`` of the classes ``index``, ``(N, 1, *)``."""
    others = logits.scatter(1, index, float('-inf')).logsumexp(1)
    odds = others - logits.gather(1, index).squeeze(1)
    # The clamp keeps the branch that is not taken free of log(0).
    exact = F.softplus(odds.clamp(min=_LINEAR_BELOW), threshold=50).log()
    return torch.where(odds < _LINEAR_BELOW, odds, exact)
