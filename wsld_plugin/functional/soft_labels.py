"""Soft-label losses by sample, and the logits that they are given."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import check_number, check_one_of, has_class_indices, widen

TRANSFORMS = (None, 'standardize', 'spherical')
SoftLoss = Union[str, Mapping[str, Any]]
# What the authors of standardized logits add to the deviation.
_EPS = 1e-7


def soft_label_loss(student: Tensor,
                    teacher: Tensor,
                    gt_labels: Tensor,
                    soft_loss: SoftLoss = 'kl',
                    *,
                    tau: float,
                    transform: Optional[str] = None) -> Tensor:
    r"""What each sample's soft label says of the student, before any weight.

    With the label y, :math:`p = \mathrm{softmax}(z/\tau)` and :math:`\hat p`
    the same without the label's class:

    - ``'kl'``: :math:`-\tau^2 \sum_k p^t_k \log p^s_k`, which holds the
      teacher's entropy; its gradient is that of the KL divergence.
    - ``'dkd'``: :math:`\tau^2 [\alpha KL((p^t_y, 1 - p^t_y), (p^s_y, 1 -
      p^s_y)) + \beta KL(\hat p^t, \hat p^s)]`, alpha and beta 1.
    - ``'nkd'``: :math:`-q^t_y \log q^s_y - \gamma \tau^2 \sum_k \hat p^t_k
      \log \hat p^s_k` with q at temperature 1, gamma 1.5.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``, any floating dtype.
        teacher: Logits of the same shape.
        gt_labels: Class indices ``(N, *)`` in ``[0, C)``. Of class
            probabilities the likeliest class is the label.
        soft_loss: A name, or ``dict(type='dkd', alpha=1, beta=8)`` and
            ``dict(type='nkd', gamma=1.5)`` with numbers of your own.
        tau: Temperature of both softmaxes, above 0.
        transform: What is done to the logits first, class by class:

            - None: nothing.
            - ``'standardize'``: less their mean, over 1e-7 and their
              deviation, in both networks.
            - ``'spherical'``: the student's likewise, times the teacher's
              deviation: both have one norm around their mean.

    Returns:
        ``(N, *)`` in float32 (float64 for float64 logits).

    Numerics:
        Classes of ``-inf`` in both networks count for nothing, nor in mean
        and deviation. Equal logits have no scale: transformed they are 0,
        without gradient. DKD's value is a difference, rounded to about 1e-7
        of ``tau**2``; its gradient keeps its digits.

    Source: Zhao et al. (DKD), CVPR 2022; Yang et al. (NKD), ICCV 2023; Sun
    et al. (standardized logits), CVPR 2024, with the deviation of their code,
    over C - 1; Guo et al. (spherical), 2020, as in their code.

    Example:
        >>> import torch
        >>> z = torch.zeros(1, 2)
        >>> soft_label_loss(z, z, torch.tensor([0]), 'nkd', tau=1)  # ln 2 / 2
        tensor([0.3466])
    """
    loss = parse_soft_loss(soft_loss)
    check_one_of('transform', transform, TRANSFORMS)
    student, teacher = _transformed(widen(student), widen(teacher), transform)
    return loss(student, teacher, gt_labels, tau)


def parse_soft_loss(soft_loss: SoftLoss) -> Callable[..., Tensor]:
    """The function of a loss, with its own settings, or an error."""
    if not isinstance(soft_loss, (str, Mapping)):
        raise TypeError('soft_loss must be a string or a dict, got '
                        f'{type(soft_loss).__name__}')
    settings: dict[str, Any] = dict(
        dict(type=soft_loss) if isinstance(soft_loss, str) else soft_loss)
    name: Any = settings.pop('type', None)
    check_one_of('soft_loss', name, tuple(_LOSSES))
    function, *known = _LOSSES[name]
    for key, value in settings.items():
        check_one_of(f'a setting of soft_loss {name!r}', key, tuple(known))
        check_number(f'soft_loss[{key!r}]', value, least=0)
    return partial(function, **settings)


def kl_loss(student: Tensor, teacher: Tensor, gt_labels: Optional[Tensor],
            tau: float) -> Tensor:
    """See :func:`soft_label_loss`; the label has no part in it."""
    soft_labels = (widen(teacher) * (1 / tau)).softmax(1)
    logp = _scaled(student, tau).log_softmax(1)
    return (soft_labels * logp).sum(1) * -tau**2


def _dkd_loss(student: Tensor, teacher: Tensor, gt_labels: Tensor, tau: float,
              alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    index = _index(gt_labels)
    target, rest = [], []
    for logits in (_scaled(student, tau), _scaled(teacher, tau)):
        odds = _odds(logits, index)
        target.append(F.logsigmoid(torch.stack((-odds, odds), 1)))
        rest.append(_others(logits, index).log_softmax(1))
    return (alpha * _divergence(*target) + beta * _divergence(*rest)) * tau**2


def _nkd_loss(student: Tensor, teacher: Tensor, gt_labels: Tensor, tau: float,
              gamma: float = 1.5) -> Tensor:
    index = _index(gt_labels)
    odds_s, odds_t = (_odds(_scaled(logits, 1.0), index)
                      for logits in (student, teacher))
    target = (-odds_t).sigmoid() * F.logsigmoid(-odds_s)
    soft_labels = _others(_scaled(teacher, tau), index).softmax(1)
    logp = _others(_scaled(student, tau), index).log_softmax(1)
    return -target - (soft_labels * logp).sum(1) * (gamma * tau**2)


# Each with the names of its settings.
_LOSSES: dict[str, Any] = {
    'kl': (kl_loss, ),
    'dkd': (_dkd_loss, 'alpha', 'beta'),
    'nkd': (_nkd_loss, 'gamma'),
}


def _scaled(logits: Tensor, tau: float) -> Tensor:
    scaled = widen(logits) * (1 / tau)
    # 0 times the -inf of a masked class would be no number.
    return scaled.clamp_(min=torch.finfo(scaled.dtype).min / 2)


def _index(gt_labels: Tensor) -> Tensor:
    if not has_class_indices(gt_labels):
        return gt_labels.argmax(1, keepdim=True)
    return gt_labels.long().unsqueeze(1)


def _others(logits: Tensor, index: Tensor) -> Tensor:
    """Logits without a share for the label, below any masked class."""
    return logits.scatter(1, index, torch.finfo(logits.dtype).min)


def _odds(logits: Tensor, index: Tensor) -> Tensor:
    """``log((1 - p) / p)`` of the label, with a gradient."""
    return (_others(logits, index) - logits.gather(1, index)).logsumexp(1)


def _divergence(logp_s: Tensor, logp_t: Tensor) -> Tensor:
    """KL divergence from the teacher's distribution to the student's."""
    return (logp_t.exp() * (logp_t - logp_s)).sum(1)


def _transformed(student: Tensor, teacher: Tensor,
                 transform: Optional[str]) -> tuple[Tensor, Tensor]:
    if transform is None:
        return student, teacher
    scores, _ = _standardized(student)
    scores_t, deviation = _standardized(teacher)
    if transform == 'standardize':
        return scores, scores_t
    # -inf times no deviation would be no number.
    return torch.where(student == -math.inf, student,
                       scores * deviation), teacher


def _standardized(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Scores like the logits, and the deviation, ``(N, 1, *)``."""
    masked = logits == -math.inf
    count = (~masked).sum(1, keepdim=True)
    logits = logits.masked_fill(masked, 0.0)
    mean = logits.sum(1, keepdim=True) / count.clamp(min=1)
    centred = (logits - mean).masked_fill(masked, 0.0)
    variance = centred.square().sum(1, keepdim=True)
    variance = variance / (count - 1).clamp(min=1)
    # No more than rounding: a tiny deviation would blow up the gradient.
    rounding = 2 * torch.finfo(logits.dtype).eps * mean
    flat = variance <= rounding.square()
    deviation = variance.masked_fill(flat, 1.0).sqrt()
    scores = (centred / (deviation + _EPS)).masked_fill(flat, 0.0)
    return (scores.masked_fill(masked, -math.inf),
            deviation.masked_fill(flat, 0.0))
