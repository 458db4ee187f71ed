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
:math:`(S - 1 + 2^{x}, 1/(1+v))` otherwise. Nothing overflows, and neither
the cross-entropies nor the weight subtract two close numbers. The soft-label
loss does where both networks prefer one wrong class by far; its error is then
that of the margin, in the rounding of float32.
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
# On a CPU they also stay below this share of the logits, unless that is so
# little (128 KiB in float32) that most of the time would go into the calls.
_SCRATCH_SHARE = 0.13
_LEAST_SCRATCH = 2**15
# Numbers that one row needs besides its classes: margins, sums, coefficients.
_ROW_NUMBERS = 32
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
                       margin: Tensor) -> None:
    """Write A into ``out``, -huge at y, and x into ``margin``."""
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


def _exponentiate(a: Tensor, tau: float, scratch: Optional[Tensor],
                  total: Tensor, total_at_one: Optional[Tensor]) -> None:
    """Turn A into q, S into ``total``; S at temperature 1, too, if asked."""
    if total_at_one is not None and scratch is not None:
        torch.mul(a, tau, out=scratch)
        torch.sum(scratch.exp2_(), 1, keepdim=True, out=total_at_one)
    torch.sum(a.exp2_(), 1, keepdim=True, out=total)
    if total_at_one is not None and scratch is None:
        # tau is 2, and the sum of q**2 a norm, which needs no memory.
        torch.linalg.vector_norm(a, 2, 1, keepdim=True, out=total_at_one)
        total_at_one.square_()


def _block(student: Tensor, teacher: Tensor, label: Tensor,
           weight: Optional[Tensor], scale: Tensor, tau: float, eps: float,
           need_grad: bool, q_s: Tensor, q_t: Tensor,
           scratch: Optional[Tensor]) -> Tensor:
    """Rows ``scale * tau^2 * weight * soft-label loss`` of one block.

    Logits and buffers have shape ``(a, C, b)``; ``label`` and ``weight``
    ``(a, 1, b)``; ``scale`` that or none. Leaves the gradient in ``q_s`` if
    it is needed. Without ``scratch`` b must be 1 and ``tau`` 2.
    """
    # Student and teacher, at temperature tau; then both at temperature 1.
    known = weight is not None
    x = q_t.new_empty((2 if known else 4, *label.shape))
    total = torch.empty_like(x)
    x_s, x_t, *at_one = x.unbind(0)
    total_s, total_t, *total_at_one = total.unbind(0)
    total_s1, total_t1 = total_at_one or (None, None)
    _relative_to_label(teacher, label, tau, q_t, x_t)
    _exponentiate(q_t, tau, scratch, total_t, total_t1)
    _relative_to_label(student, label, tau, q_s, x_s)
    if scratch is None:
        cross = torch.bmm(q_t.transpose(1, 2), q_s)
    else:
        cross = torch.mul(q_t, q_s, out=scratch).sum(1, keepdim=True)
    _exponentiate(q_s, tau, scratch, total_s, total_s1)
    if at_one:
        x_s1, x_t1 = at_one
        torch.mul(x_s, tau, out=x_s1)
        torch.mul(x_t, tau, out=x_t1)
        if not eps:
            excess = torch.minimum(x_s1, x_t1).sub_(_LINEAR_BITS)
            x[2:].sub_(excess.clamp_(min=0))
    away = x.abs().neg_().exp2_()
    behind = x < 0
    v = torch.where(behind, total - 1 + away, total * away)
    ce_s, _, *ce_at_one = _log1p(v).sub_(x.clamp(max=0), alpha=_LN2).unbind(0)
    if weight is None:
        ce_s1, ce_t1 = ce_at_one
        weight = _one_minus_exp(ce_s1 / (ce_t1 + eps if eps else ce_t1))
    k_s, k_t, *_ = away.masked_fill_(behind, 1.0).div_(v.add_(1)).unbind(0)
    wrong_s, wrong_t = total_s * k_s, total_t * k_t
    soft = (wrong_t * x_s).sub_(cross.mul_(k_t)).mul_(_LN2).add_(ce_s)
    weighted = weight * scale * tau
    if need_grad:
        q_s.mul_(k_s.mul_(weighted))
        q_s.addcmul_(q_t, k_t.mul_(weighted), value=-1)
        q_s.scatter_(1, label, wrong_t.sub_(wrong_s).mul_(weighted))
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


def _blocks(
    shape: torch.Size, grad: Optional[Tensor], spare: int, like: Tensor
) -> Iterator[tuple[tuple[slice, ...], tuple[Tensor, ...]]]:
    """Cut ``(n, C, pixels)`` into blocks, each with its buffers.

    Args:
        shape: Shape of the logits.
        grad: Where the gradient goes if it has the precision of the
            computation. A block's part of it is the first of the block's
            buffers, and the part of blocks to come serves as the others
            while it is large enough.
        spare: Number of buffers besides the first.
        like: Tensor whose dtype and device the buffers get.

    Yields:
        A block's position and its buffers.
    """
    n, classes, pixels = shape
    cached = share = _DEVICE_SCRATCH
    if like.device.type == 'cpu':
        cached = _CPU_SCRATCH_PER_THREAD * torch.get_num_threads()
        share = min(
            cached, max(_LEAST_SCRATCH, int(shape.numel() * _SCRATCH_SHARE)))
    columns = spare * classes + _ROW_NUMBERS
    width = max(1, min(pixels, share // columns))
    most, own = (max(1, numbers // (columns * width)) if width == pixels else 1
                 for numbers in (cached, share))
    own = min(own, n)
    first = 0 if grad is not None else 1
    buffers = like.new_empty((first + spare, own, classes, width))
    start = 0
    while start < n:
        height = min(most, (n - start) // (1 + spare))
        if grad is not None and height > own:
            free = grad[start + height:start + (1 + spare) * height]
            block = free.view(spare, height, classes, width)
        else:
            height = min(own, n - start)
            block = buffers[:, :height]
        rows = slice(start, start + height)
        for j in range(0, pixels, width):
            at: tuple[slice, ...] = (rows, )
            part = block
            if width < pixels:
                at = (rows, slice(None), slice(j, j + width))
                part = block[..., :pixels - j]
            own_part = () if grad is None else (grad[at], )
            yield at, (*own_part, *part.unbind(0))
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
    # See _exponentiate. A GPU may be set to take products in TF32.
    lean = tau == 2 and s.shape[2] == 1 and s.device.type == 'cpu'
    spare = 1 if lean else 2
    for at, buffers in _blocks(s.shape, grad if direct else None, spare,
                               factor):
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
        q_s, q_t, *scratch = buffers
        block = _block(s_block, t_block, label, weight, scale, tau, eps,
                       need_grad, q_s, q_t, scratch[0] if scratch else None)
        if rows is None:
            value += block.sum()
        else:
            rows[at] = block
        if grad is not None and not direct:
            grad[at] = q_s
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
        # Autocast would take the batched product in half precision.
        with torch.autocast(student.device.type, enabled=False):
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
