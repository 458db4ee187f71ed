"""The weight of each sample under WSLD and the schemes it is compared with."""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Optional, Union

import torch
from torch import Tensor

from .blocks import by_block
from .inputs import check_inputs, check_number, split_labels, widen
from .regularization import larger_variance
from .weight import wsld_weight

SCHEMES = ('wsld', 'uniform', 'drop_regularization', 'only_regularization',
           'drop_random')
KINDS = ('regularization', 'other')
Weighting = Union[str, Mapping[str, float]]


@torch.no_grad()
def sample_weight(student: Tensor,
                  teacher: Tensor,
                  gt_labels: Tensor,
                  weighting: Weighting = 'wsld',
                  *,
                  tau: float,
                  eps: float = 0.0,
                  ignore_index: int = -100) -> Tensor:
    """Weight of each sample's soft-label loss under a weighting scheme.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``, any floating dtype.
        teacher: Logits of the same shape.
        gt_labels: Class indices ``(N, *)`` of an integer dtype, or class
            probabilities shaped like the logits.
        weighting: One of

            - ``'wsld'``: :func:`wsld_weight`, in [0, 1].
            - ``'uniform'``: 1 for all, plain distillation.
            - ``'drop_regularization'``: 0 for regularization samples
              (:func:`regularization_samples`, by magnitude), 1 for others.
            - ``'only_regularization'``: 1 for them, 0 for others.
            - ``'drop_random'``: 0 for as many samples as the batch has
              regularization samples, drawn evenly from all by torch's
              generator of the logits' device; 1 for others.
            - ``dict(regularization=0.5, other=1.0)``: these weights, not
              negative, for the two kinds.
        tau: Temperature that tells regularization samples, above 0.
        eps: Added to the teacher's cross-entropy, in nats; for ``'wsld'``.
        ignore_index: Class index of positions that do not count.

    Returns:
        ``(N, *)`` in float32 (float64 for float64 logits), without gradient;
        0 at positions that do not count.

    Raises:
        TypeError: If an argument has an unusable type or dtype.
        ValueError: If shapes, labels, ``tau`` or ``weighting`` are wrong, or
            ``eps`` is given with another scheme than ``'wsld'``.

    Source:
        arXiv 2102.00650: the ablations on regularization samples.
    """
    check_weighting(weighting, eps)
    tau = check_number('tau', tau, above=0)
    check_inputs(student, teacher, gt_labels, ignore_index)
    labels, ignored = split_labels(gt_labels, ignore_index)
    weight = row_weights(student, teacher, labels, ignored, weighting, tau,
                         eps)
    return weight if ignored is None else weight.masked_fill(ignored, 0.0)


@torch.no_grad()
def row_weights(student: Tensor, teacher: Tensor, labels: Tensor,
                ignored: Optional[Tensor], weighting: Weighting, tau: float,
                eps: float) -> Tensor:
    """The weights from checked arguments; any number where ignored."""
    if weighting == 'wsld':
        return by_block(partial(wsld_weight, eps=eps), student, teacher,
                        labels)
    weight = torch.ones_like(widen(student[:, 0]))
    if weighting == 'uniform':
        return weight
    kind = by_block(partial(larger_variance, tau=tau), student, teacher,
                    labels)
    if ignored is not None:
        kind = kind & ~ignored
    if weighting == 'drop_random':
        kind = _as_many_at_random(kind, ignored)
    of_kind, of_others = _weights_of_kinds(weighting)
    return weight.mul(of_others).masked_fill(kind, of_kind)


def check_weighting(weighting: Weighting, eps: float = 0.0) -> None:
    """Refuse a weighting that :func:`sample_weight` does not know.

    Raises:
        TypeError: If it is neither a name nor a mapping, or maps to what is
            no number.
        ValueError: If the name or a key is unknown, a key is missing, a
            weight is negative or not finite, or ``eps`` is not 0 where the
            scheme has no use for it.
    """
    if isinstance(weighting, str):
        if weighting not in SCHEMES:
            raise ValueError(f'weighting must be one of {SCHEMES} or a dict '
                             f'of weights for {KINDS}, got {weighting!r}')
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


def _weights_of_kinds(weighting: Weighting) -> tuple[float, float]:
    """Weights of the samples that are singled out and of the others."""
    if not isinstance(weighting, str):
        return float(weighting[KINDS[0]]), float(weighting[KINDS[1]])
    return (1.0, 0.0) if weighting == 'only_regularization' else (0.0, 1.0)


def _as_many_at_random(kind: Tensor, ignored: Optional[Tensor]) -> Tensor:
    """As many True as ``kind`` has, evenly drawn, none where ignored."""
    draw = torch.rand(kind.shape, device=kind.device)
    if ignored is not None:
        draw = draw.masked_fill(ignored, 2)
    ranks = draw.flatten().argsort().argsort()
    # The count stays a tensor: reading it would wait for the device.
    return (ranks < kind.sum()).view(kind.shape)
