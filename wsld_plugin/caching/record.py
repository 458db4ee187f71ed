"""One row of a cache: what is kept of the answer to one picture."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from ..functional import log_cross_entropy

_HALF_MAX = float(np.finfo(np.float16).max)
# Below this log-cross-entropy, expm1(x) is x (1 + x / 2) to float32.
_TINY_BELOW = -8.0
_DTYPES = dict(
    i2=torch.int16, i4=torch.int32, f2=torch.float16, f4=torch.float32)


def row_dtype(num_classes: int, top_k: Optional[int]) -> np.dtype:
    """Record of one row.

    It has ``check`` (CRC-32 of the other fields), ``pixels`` (CRC-32 of the
    picture), ``label``, ``inputs`` (:func:`input_probe`), ``log_ce`` (log of
    the cross-entropy in nats at temperature 1) and ``logits``, less the
    largest of the classes that are not the true one. With ``top_k`` these
    are of as many classes beside the true one, which ``classes`` names, and
    ``log_rest`` is the log of what the others' exponentials add up to.
    """
    fields: list[tuple] = [('check', '<u4'), ('pixels', '<u4'),
                           ('label', '<i4'), ('inputs', '<f4'),
                           ('log_ce', '<f4')]
    if top_k is None:
        fields.append(('logits', '<f2', (num_classes, )))
    else:
        index = '<i2' if num_classes <= 2**15 else '<i4'
        fields += [('log_rest', '<f4'), ('classes', index, (top_k, )),
                   ('logits', '<f2', (top_k, ))]
    return np.dtype(fields, align=True)


def input_probe(inputs: Tensor) -> Tensor:
    """One float32 for each preprocessed picture, to know it again by."""
    means = inputs.detach().float().flatten(2).mean(2)
    order = torch.arange(1, means.shape[1] + 1, device=means.device)
    return (means * order).sum(1)


def encode(logits: Tensor, labels: Tensor,
           top_k: Optional[int]) -> dict[str, Tensor]:
    """Fields of rows that are made of a teacher's logits and labels.

    ``logits`` are ``(N, C)``, finite, of any floating dtype, ``labels`` class
    indices ``(N,)`` in [0, C).
    """
    fields = dict(label=labels, log_ce=log_cross_entropy(logits, labels))
    logits = logits.float()
    others = logits.scatter(1, labels.long().unsqueeze(1), float('-inf'))
    top = others.max(1, keepdim=True).values
    if top_k is not None:
        logits, fields['classes'] = others.topk(top_k, dim=1)
        rest = others.scatter(1, fields['classes'], float('-inf'))
        fields['log_rest'] = rest.logsumexp(1) - top.squeeze(1)
    centred = (logits - top).clamp(-_HALF_MAX, _HALF_MAX)
    return dict(fields, logits=centred.half())


def unpack(rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
    """Put records ``(N,)`` on a device by one copy, of which fields are views.

    A copy to a GPU is not waited for. Fields of unsigned integers stay.
    """
    data = torch.from_numpy(rows.view('u1').reshape(len(rows), -1))
    if device.type == 'cuda':
        data = data.pin_memory()
    data = data.to(device, non_blocking=True)
    fields: dict[str, Tensor] = {}
    for name, (field, start, *_) in (rows.dtype.fields or {}).items():
        size, kind = field.base.itemsize, field.base.str[1:]
        if kind in _DTYPES:
            end = (start + field.itemsize) // size
            column = data.view(_DTYPES[kind])[:, start // size:end]
            fields[name] = column if field.shape else column[:, 0]
    return fields


def decode(fields: Mapping[str, Tensor], num_classes: int) -> Tensor:
    r"""Logits ``(N, C)`` of rows, float32, those not kept as if equal.

    The true class's logit is set so that the cross-entropy at temperature 1
    is the stored one, which WSLD's weight is made of, whatever float16 did
    to the others. With :math:`L` the log-sum-exp of the other classes and
    :math:`c` the cross-entropy it is :math:`L - \log(e^c - 1)`.
    """
    logits = fields['logits'].float()
    if 'classes' in fields:
        left_out = num_classes - 1 - logits.shape[1]
        each = fields['log_rest'].unsqueeze(1) - float(np.log(left_out))
        logits = each.expand(-1, num_classes).scatter(
            1, fields['classes'].long(), logits)
    true = fields['label'].long().unsqueeze(1)
    others = logits.scatter(1, true, float('-inf')).logsumexp(1)
    log_ce = fields['log_ce']
    ce = log_ce.exp()
    # log(expm1(c)) without overflow, and for a confident teacher without
    # rounding c to 0. The clamp keeps the branch not taken free of log(0).
    exact = ce + (-torch.expm1(-ce.clamp(min=1e-30))).log()
    odds = torch.where(log_ce < _TINY_BELOW, log_ce + ce / 2, exact)
    return logits.scatter(1, true, (others - odds).unsqueeze(1))


def compare(known: Tensor, now: Tensor, labels: Tensor,
            top_k: Optional[int]) -> tuple[float, bool]:
    """How far decoded logits ``(N, C)`` are from what the teacher says now.

    Returns the largest absolute difference of a kept and centred logit or of
    the logarithm of a cross-entropy, and whether all are within a thousandth,
    or three hundredths where a GPU's convolutions round to TF32, and float16's
    rounding.
    """
    one, two = (encode(logits, labels, None) for logits in (known, now))
    others = known.scatter(1, labels.unsqueeze(1), float('-inf'))
    kept = others.topk(top_k or known.shape[1] - 1).indices
    old, new = (of['logits'].float().gather(1, kept) for of in (one, two))
    gap, gap_ce = (old - new).abs(), (one['log_ce'] - two['log_ce']).abs()
    # A unit in the last of 11 digits: half for the rounding, and as much for
    # the teacher's own, which may turn it the other way.
    rounds = now.is_cuda and torch.backends.cudnn.allow_tf32
    slack = 3e-2 if rounds else 1e-3
    alike = (gap <= slack + new.abs() * 2**-10).all() & (gap_ce <= slack).all()
    return max(gap.max().item(), gap_ce.max().item()), bool(alike)
