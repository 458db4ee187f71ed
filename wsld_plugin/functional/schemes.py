"""The weight of each sample under WSLD and the schemes it is compared with."""
from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .blocks import by_block
from .inputs import check_number, check_one_of, widen
from .regularization import larger_variance
from .weight import log_cross_entropy, wsld_weight

KINDS = ('regularization', 'other')
# Weights of the two kinds; None where they have nothing to do with them.
_SCHEMES: dict[str, Any] = {
    'wsld': None,
    'uniform': None,
    'entropy': None,
    'drop_regularization': (0.0, 1.0),
    'only_regularization': (1.0, 0.0),
    'drop_random': (0.0, 1.0),
}
Weighting = Union[str, Mapping[str, float]]
# At which EA-KD takes its entropies.
_ENTROPY_TAU = 3.0


@torch.no_grad()
def sample_weight(student: Tensor,
                  teacher: Tensor,
                  gt_labels: Tensor,
                  weighting: Weighting = 'wsld',
                  *,
                  tau: float,
                  eps: float = 0.0,
                  ignored: Optional[Tensor] = None) -> Tensor:
    """Weight of each sample's soft-label loss under a weighting scheme.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``.
        teacher: Logits of the same shape.
        gt_labels: As for :func:`wsld_weight`.
        weighting: One of

            - ``'wsld'``: :func:`wsld_weight`, in [0, 1].
            - ``'uniform'``: 1 for all, plain distillation.
            - ``'entropy'``: EA-KD's, the teacher's entropy in nats, at
              temperature 3, times ``(1 + e) / 2`` where e is the student's
              over its largest, ln C.
            - ``'drop_regularization'``: 0 for regularization samples
              (:func:`regularization_samples`), 1 for others.
            - ``'only_regularization'``: 1 for them, 0 for others.
            - ``'drop_random'``: 0 for as many samples as the batch has
              regularization samples, drawn evenly from all by torch's
              generator of the logits' device; 1 for others.
            - ``dict(regularization=0.5, other=1.0)``: these weights, not
              negative, for the two kinds.
        tau: Temperature that tells regularization samples, above 0.
        eps: Added to the teacher's cross-entropy, in nats; for ``'wsld'``.
        ignored: Booleans ``(N, *)``, True where a position does not count.

    Returns:
        ``(N, *)`` in float32 (float64 for float64 logits), without gradient;
        any number at positions that do not count. The schemes are those of
        arXiv 2102.00650's ablations; EA-KD is arXiv 2311.13621.
    """
    if weighting == 'wsld':
        return by_block(partial(wsld_weight, eps=eps), student, teacher,
                        gt_labels)
    if weighting == 'entropy':
        return by_block(_entropy_weight, student, teacher)
    weight = torch.ones_like(widen(student[:, 0]))
    if weighting == 'uniform':
        return weight
    kind = by_block(partial(larger_variance, tau=tau), student, teacher,
                    gt_labels)
    if weighting == 'drop_random':
        kind = _as_many_at_random(kind, ignored)
    of_kind, of_others = (
        _SCHEMES[weighting] if isinstance(weighting, str) else
        (weighting[name] for name in KINDS))
    return weight.mul(of_others).masked_fill(kind, of_kind)


def _entropy_weight(student: Tensor, teacher: Tensor) -> Tensor:
    entropy_s, entropy_t = (
        log_cross_entropy(logits, logits.softmax(1)).exp()
        for logits in (widen(student) / _ENTROPY_TAU,
                       widen(teacher) / _ENTROPY_TAU))
    return entropy_t * (1 + entropy_s / math.log(max(student.shape[1], 2))) / 2


def check_weighting(weighting: Weighting, eps: float = 0.0) -> None:
    """Refuse a weighting that :func:`sample_weight` does not know."""
    if isinstance(weighting, str):
        check_one_of('weighting', weighting, tuple(_SCHEMES))
    elif isinstance(weighting, Mapping):
        if set(weighting) != set(KINDS):
            raise ValueError(f'weighting must have the keys {KINDS}, got '
                             f'{tuple(weighting)}')
        for kind in KINDS:
            check_number(f'weighting[{kind!r}]', weighting[kind], least=0)
    else:
        raise TypeError('weighting must be a string or a dict, got '
                        f'{type(weighting).__name__}')
    if check_number('eps', eps, least=0) and weighting != 'wsld':
        raise ValueError("eps belongs to weighting='wsld', got eps="
                         f'{eps} with weighting={weighting!r}')


def _as_many_at_random(kind: Tensor, ignored: Optional[Tensor]) -> Tensor:
    """As many True as ``kind`` has, evenly drawn, none where ignored."""
    draw = torch.rand(kind.shape, device=kind.device)
    if ignored is not None:
        draw = draw.masked_fill(ignored, 2)
        kind = kind & ~ignored
    ranks = draw.flatten().argsort().argsort()
    # The count stays a tensor: reading it would wait for the device.
    return (ranks < kind.sum()).view(kind.shape)
