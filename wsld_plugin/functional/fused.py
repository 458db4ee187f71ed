r"""Value and gradient of the WSLD loss in one pass over cache-sized blocks.

The logits are visited once. A block of rows is small enough to stay in the
processor's cache through the dozen elementwise operations it needs, and the
gradient is written where the student's exponentials stood, so that one tensor
of the logits' size is kept and nothing else.

Every quantity is taken relative to the label's class y, in bits, because
``exp2`` is several times faster than ``exp`` on a CPU and no exact step needs
the natural base. With :math:`A_j = (z_j - \max_{k \ne y} z_k)/(\tau \ln 2)`
over the other classes, :math:`q_j = 2^{A_j}`, :math:`S = \sum_{j \ne y} q_j`
and the label's margin :math:`x = (z_y - \max_{k \ne y} z_k)/(\tau \ln 2)`,

.. math::
    p_j = q_j K, \quad 1 - p_y = S K, \quad
    -\ln p_y = \mathrm{log1p}(v) + \ln 2 \max(-x, 0)

where :math:`(v, K) = (S 2^{-x}, 2^{-x}/(1+v))` for :math:`x \ge 0` and
:math:`(S - 1 + 2^{x}, 1/(1+v))` otherwise. No step subtracts two close
numbers, and none overflows.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from .inputs import has_class_indices, widen
from .weight import wsld_weight

_LN2 = math.log(2.0)
# Scratch numbers of one block. On a CPU they fit the second-level caches of
# the threads that share the block (1 MiB each in float32); elsewhere a block
# only has to be large enough to hide the launches.
_CPU_SCRATCH_PER_THREAD = 2**18
_DEVICE_SCRATCH = 2**25
# On a CPU they also stay below an eighth of the logits.
_SCRATCH_SHARE = 8
# Numbers that one row needs besides its classes: margins, sums, coefficients.
_ROW_NUMBERS = 48
# Beyond this margin in bits a cross-entropy is S * 2**-x to float64's
# rounding, so equal shifts of two margins leave their ratio unchanged.
_LINEAR_BITS = 64.0


def _log1p(v: Tensor) -> Tensor:
    """``log1p`` by two functions that are vectorised where it is not."""
    return torch.where(v < 1, (v / (v + 2)).atanh_().mul_(2), (v + 1).log_())


def _one_minus_exp(ratio: Tensor) -> Tensor:
    """``-expm1(-ratio)`` through tanh, for the same reason."""
    half = (ratio * 0.5).tanh_()
    return 2 * half / (half + 1)


def _relative_to_label(logits: Tensor, label: Tensor, tau: float, out: Tensor,
                       scratch: Optional[Tensor], margin: Tensor,
                       total: Optional[Tensor]) -> None:
    """Write A into ``out`` and x into ``margin``; ``out`` is -huge at y.

    ``total``, if given, takes the sum of ``exp2(tau * A)``: S at temperature
    1, whose margin is ``tau * x``.
    """
    scale = 1 / (tau * _LN2)
    if logits.dtype == out.dtype:
        torch.mul(logits, scale, out=out)
    else:
        out.copy_(logits).mul_(scale)
    at_label = out.gather(1, label)
    # Finite, because 0 * -inf would spoil the products below.
    out.scatter_(1, label, torch.finfo(out.dtype).min / 2**24)
    top = out.amax(1, keepdim=True)
    out.sub_(top)
    torch.sub(at_label, top, out=margin)
    if total is not None and scratch is not None:
        torch.mul(out, tau, out=scratch)
        torch.sum(scratch.exp2_(), 1, keepdim=True, out=total)


def _block(student: Tensor, teacher: Tensor, label: Tensor,
           weight: Optional[Tensor], scale: Tensor, tau: float, eps: float,
           need_grad: bool, q_s: Tensor, q_t: Tensor,
           scratch: Tensor) -> Tensor:
    """Rows ``scale * tau^2 * weight * soft-label loss`` of one block.

    Logits and buffers have shape ``(a, C, b)``; ``label`` and ``weight``
    ``(a, 1, b)``; ``scale`` that or none. Leaves the gradient in ``q_s`` if
    it is needed.
    """
    # Student and teacher, at temperature tau; then both at temperature 1.
    known = weight is not None
    x = q_t.new_empty((2 if known else 4, *label.shape))
    total = torch.empty_like(x)
    at_one = [None, None] if known else [total[2], total[3]]
    _relative_to_label(teacher, label, tau, q_t, scratch, x[1], at_one[1])
    torch.sum(q_t.exp2_(), 1, keepdim=True, out=total[1])
    _relative_to_label(student, label, tau, q_s, scratch, x[0], at_one[0])
    cross = torch.mul(q_t, q_s, out=scratch).sum(1, keepdim=True)
    torch.sum(q_s.exp2_(), 1, keepdim=True, out=total[0])
    if not known:
        torch.mul(x[:2], tau, out=x[2:])
        if not eps:
            x[2:].sub_(x[2:].amin(0).sub_(_LINEAR_BITS).clamp_(min=0))
    away = x.abs().neg_().exp2_()
    ahead = x >= 0
    v = torch.where(ahead, total * away, total - 1 + away)
    ce = _log1p(v).sub_(x.clamp(max=0), alpha=_LN2)
    if weight is None:
        weight = _one_minus_exp(ce[2] / (ce[3] + eps))
    k = torch.where(ahead[:2], away[:2], 1.0).div_(v[:2] + 1)
    wrong = total[:2] * k
    soft = ce[0] + _LN2 * (wrong[1] * x[0] - k[1] * cross)
    weighted = weight * scale * tau
    if need_grad:
        k.mul_(weighted)
        q_s.mul_(k[0]).addcmul_(q_t, k[1], value=-1)
        q_s.scatter_(1, label, weighted * (wrong[1] - wrong[0]))
    return soft.mul_(weighted).mul_(tau)


def _as_rows(tensor: Tensor, channels_last: bool) -> Tensor:
    """View ``(N, C, *)`` as ``(rows, C, 1)`` or ``(N, C, pixels)``."""
    if channels_last:
        tensor = tensor.movedim(1, -1).flatten(0, -2)
    return tensor.reshape(*tensor.shape[:2], tensor.shape[2:].numel())


def _from_rows(rows: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    """Undo :func:`_as_rows` for a tensor of ``like``'s shape."""
    if channels_last:
        return rows.view(like.movedim(1, -1).shape).movedim(-1, 1)
    return rows.view(like.shape)


def _blocks(shape: torch.Size, grad: Optional[Tensor],
            like: Tensor) -> Iterator[tuple[tuple[slice, ...], list[Tensor]]]:
    """Cut ``(n, C, pixels)`` into blocks, each with its buffers.

    Args:
        shape: Shape of the logits.
        grad: Where the gradient goes if it has the precision of the
            computation. A block's part of it is one of the block's buffers,
            and the part of blocks to come serves as the others while it is
            large enough.
        like: Tensor whose dtype and device the other buffers get.

    Yields:
        A block's position and its buffers q_s, q_t and scratch.
    """
    n, classes, pixels = shape
    cached = share = _DEVICE_SCRATCH
    if like.device.type == 'cpu':
        cached = _CPU_SCRATCH_PER_THREAD * torch.get_num_threads()
        share = min(cached, shape.numel() // _SCRATCH_SHARE)
    columns = 2 * classes + _ROW_NUMBERS
    width = max(1, min(pixels, share // columns))
    most, own = (max(1, numbers // (columns * width)) if width == pixels else 1
                 for numbers in (cached, share))
    buffers = like.new_empty(
        (3 if grad is None else 2, min(own, n), classes, width))
    start = 0
    while start < n:
        height = min(most, n - start)
        spare = buffers
        if height > own:
            height = own if grad is None else min(height, (n - start) // 3)
        if height > own and grad is not None:
            spare = grad[start + height:start + 3 * height].view(
                2, height, classes, width)
        else:
            height = min(own, n - start)
        rows = slice(start, start + height)
        for j in range(0, pixels, width):
            at = (rows, slice(None), slice(j, j + width))
            q_t, scratch, *q_s = spare[:, :height, :, :pixels - j].unbind(0)
            yield at, [grad[at] if grad is not None else q_s[0], q_t, scratch]
        start += height


def _sweep(student: Tensor, teacher: Tensor, gt_labels: Tensor,
           factor: Tensor, need_grad: bool, ignore_index: int, tau: float,
           eps: float, total: bool) -> tuple[Tensor, Optional[Tensor]]:
    """Loss of every row, or their sum, and the gradient of the sum."""
    channels_last = (student.dim() > 2 and student.stride(1) == 1
                     and student.movedim(1, -1).is_contiguous())
    s = _as_rows(student, channels_last)
    t = _as_rows(teacher, channels_last)
    indices = has_class_indices(gt_labels)
    labels = _as_rows(
        gt_labels.unsqueeze(1) if indices else gt_labels, channels_last)
    grad = s.new_empty(s.shape) if need_grad else None
    direct = grad is not None and grad.dtype == factor.dtype
    rows = None if total else factor.new_empty((s.shape[0], 1, s.shape[2]))
    value = factor.new_zeros(())
    for at, buffers in _blocks(s.shape, grad if direct else None, factor):
        s_block, t_block, label = s[at], t[at], labels[at]
        if indices:
            valid = label != ignore_index
            label = label.masked_fill(~valid, 0)
            scale, weight = valid * factor, None
        else:
            scale = factor
            weight = wsld_weight(s_block, t_block, label, eps).unsqueeze(1)
            # Any class serves as y; the likeliest loses no digits.
            label = label.argmax(1, keepdim=True)
        block = _block(s_block, t_block, label, weight, scale, tau, eps,
                       need_grad, *buffers)
        if rows is None:
            value += block.sum()
        else:
            rows[at] = block
        if grad is not None and not direct:
            grad[at] = buffers[0]
    if grad is not None:
        grad = _from_rows(grad, student, channels_last)
    if rows is None:
        return value, grad
    return _from_rows(rows, student[:, :1], channels_last).squeeze(1), grad


class _FusedWSLD(torch.autograd.Function):
    """The loss; teacher, weight and labels get no gradient.

    The gradient is computed with the value and handed out once. A second
    backward pass sweeps again, and one that is itself differentiated takes
    the closed form.
    """

    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any, student: Tensor, teacher: Tensor, gt_labels: Tensor,
            factor: Tensor, *settings: Any) -> Tensor:
        ctx.save_for_backward(student, teacher, gt_labels, factor)
        ctx.settings = settings
        value, ctx.grad = _sweep(student, teacher, gt_labels, factor,
                                 ctx.needs_input_grad[0], *settings)
        return value

    @staticmethod
    def backward(  # type: ignore[override]
            ctx: Any, grad_output: Tensor) -> tuple[Optional[Tensor], ...]:
        none = (None, ) * (3 + len(ctx.settings))
        if not ctx.needs_input_grad[0]:
            return (None, *none)
        student, teacher, gt_labels, factor = ctx.saved_tensors
        grad: Optional[Tensor]
        total = grad_output.dim() == 0
        by_row = grad_output if total else grad_output.unsqueeze(1)
        if torch.is_grad_enabled():
            grad = _closed_form_gradient(student, teacher, gt_labels, factor,
                                         *ctx.settings)
            return (grad * by_row, *none)
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            _, grad = _sweep(student, teacher, gt_labels, factor, True,
                             *ctx.settings)
        # On a CPU the test is free and saves a pass over the gradient;
        # elsewhere it would wait for the device.
        if not total or grad_output.device.type != 'cpu' or grad_output != 1:
            grad = grad.mul_(by_row)  # type: ignore[union-attr]
        return (grad, *none)


def _closed_form_gradient(student: Tensor, teacher: Tensor,
                          gt_labels: Tensor, factor: Tensor,
                          ignore_index: int, tau: float, eps: float,
                          total: bool) -> Tensor:
    """``factor * tau * weight * (softmax(s/tau) - softmax(t/tau))``."""
    if has_class_indices(gt_labels):
        valid = gt_labels != ignore_index
        factor = factor * valid
        gt_labels = gt_labels.masked_fill(~valid, 0)
    weight = wsld_weight(student, teacher, gt_labels, eps)
    soft = (widen(student) / tau).softmax(1)
    soft = soft - (widen(teacher) / tau).softmax(1)
    return ((weight * factor * tau).unsqueeze(1) * soft).to(student.dtype)


def fused_wsld_loss(student: Tensor, teacher: Tensor, gt_labels: Tensor,
                    factor: Tensor, ignore_index: int, tau: float,
                    eps: float, total: bool) -> Tensor:
    """WSLD loss of each row times ``factor``, or their sum.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``; receives the gradient.
        teacher: Logits of the same shape, without gradient.
        gt_labels: int64 class indices ``(N, *)``, or class probabilities
            shaped like the logits.
        factor: Scalar in float32 or float64, which is the precision of all
            that is computed.
        ignore_index: Class index of rows that get loss and gradient 0.
        tau: Temperature.
        eps: Added to the teacher's cross-entropy, in nats.
        total: Whether to return the sum instead of the rows.

    Returns:
        ``(N, *)`` or a scalar, of ``factor``'s dtype.
    """
    return _FusedWSLD.apply(student, teacher, gt_labels, factor, ignore_index,
                            tau, eps, total)
