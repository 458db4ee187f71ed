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
from typing import Any, Optional

import torch
from torch import Tensor

from .inputs import has_class_indices, widen
from .weight import wsld_weight

_LN2 = math.log(2.0)
# Elements of one block. On a CPU each thread's share of the three buffers in
# use (1.5 MiB in float32) fits the second-level cache; elsewhere a block only
# has to be large enough to hide the launches.
_CPU_BLOCK_PER_THREAD = 2**17
_DEVICE_BLOCK = 2**24
# Two scratch buffers of a fourteenth each stay below 15% of the logits.
_SCRATCH_SHARE = 14
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
           q_s: Tensor, q_t: Tensor, scratch: Tensor,
           need_grad: bool) -> Tensor:
    """Rows ``scale * tau^2 * weight * soft-label loss`` of one block.

    All blocks have shape ``(a, C, b)``; ``label``, ``weight`` and ``scale``
    ``(a, 1, b)``. Leaves the gradient in ``q_s`` if it is needed.
    """
    # Student and teacher, at temperature tau; then both at temperature 1.
    known = weight is not None
    x = scale.new_empty((2 if known else 4, *scale.shape), dtype=q_s.dtype)
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
        tensor = tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
    return tensor.reshape(*tensor.shape[:2], -1)


def _blocks(rows: int, classes: int, pixels: int,
            device: torch.device) -> tuple[int, int]:
    """How many rows and pixels one block spans."""
    if device.type == 'cpu':
        elements = min(_CPU_BLOCK_PER_THREAD * torch.get_num_threads(),
                       rows * classes * pixels // _SCRATCH_SHARE)
    else:
        elements = _DEVICE_BLOCK
    columns = max(1, elements // classes)
    return max(1, columns // pixels), min(pixels, columns)


def _sweep(student: Tensor, teacher: Tensor, gt_labels: Tensor,
           scale: Tensor, tau: float, eps: float,
           need_grad: bool) -> tuple[Tensor, Optional[Tensor]]:
    """Scaled loss of every row, shaped like ``scale``, and the gradient."""
    channels_last = (student.dim() > 2 and student.stride(1) == 1
                     and student.movedim(1, -1).is_contiguous())
    s = _as_rows(student, channels_last)
    t = _as_rows(teacher, channels_last)
    probs = None
    if has_class_indices(gt_labels):
        label = gt_labels.unsqueeze(1)
    else:
        # Any class serves as the reference; the likeliest loses no digits.
        probs = _as_rows(gt_labels, channels_last)
        label = gt_labels.argmax(1, keepdim=True)
    label = _as_rows(label, channels_last)
    factor = _as_rows(scale.unsqueeze(1), channels_last)
    n, classes, pixels = s.shape
    rows = torch.empty_like(factor)
    if s.numel() == 0:
        return rows.view(scale.shape), torch.zeros_like(student)
    grad = torch.empty_like(student) if need_grad else None
    g = _as_rows(grad, channels_last) if grad is not None else None
    a, b = _blocks(n, classes, pixels, s.device)
    direct = g is not None and g.dtype == factor.dtype
    scratch = factor.new_empty((2 if direct else 3, min(a, n), classes, b))
    for i in range(0, n, a):
        for j in range(0, pixels, b):
            at = (slice(i, i + a), slice(None), slice(j, j + b))
            s_block, t_block, label_block = s[at], t[at], label[at]
            height, _, width = s_block.shape
            buffers = scratch[:, :height, :, :width].unbind(0)
            q_s = g[at] if direct and g is not None else buffers[2]
            weight = None
            if probs is not None:
                weight = wsld_weight(s_block, t_block, probs[at],
                                     eps).unsqueeze(1)
            rows[at] = _block(s_block, t_block, label_block, weight,
                              factor[at], tau, eps, q_s, buffers[0],
                              buffers[1], need_grad)
            if g is not None and not direct:
                g[at] = q_s
    return rows.view(scale.shape), grad


class _FusedWSLD(torch.autograd.Function):
    """Scaled loss of every row; teacher, weight and labels get no gradient.

    The gradient is computed with the value and handed out once. A second
    backward pass, or one that is itself differentiated, evaluates the closed
    form again.
    """

    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any, student: Tensor, teacher: Tensor, gt_labels: Tensor,
            scale: Tensor, tau: float, eps: float, total: bool) -> Tensor:
        ctx.save_for_backward(student, teacher, gt_labels, scale)
        ctx.tau, ctx.eps, ctx.total = tau, eps, total
        rows, ctx.grad = _sweep(student, teacher, gt_labels, scale, tau, eps,
                                ctx.needs_input_grad[0])
        return rows.sum() if total else rows

    @staticmethod
    def backward(  # type: ignore[override]
            ctx: Any, grad_output: Tensor) -> tuple[Optional[Tensor], ...]:
        if not ctx.needs_input_grad[0]:
            return (None, ) * 7
        grad, ctx.grad = ctx.grad, None
        if grad is None or torch.is_grad_enabled():
            student, teacher, gt_labels, scale = ctx.saved_tensors
            grad = _closed_form_gradient(student, teacher, gt_labels, scale,
                                         ctx.tau, ctx.eps)
            factor = grad_output if ctx.total else grad_output.unsqueeze(1)
            return (grad * factor, ) + (None, ) * 6
        if not ctx.total:
            grad.mul_(grad_output.unsqueeze(1))
        elif grad_output.device.type != 'cpu' or grad_output != 1:
            # On a CPU the test is free and saves a pass over the gradient;
            # elsewhere it would wait for the device.
            grad.mul_(grad_output)
        return (grad, ) + (None, ) * 6


def _closed_form_gradient(student: Tensor, teacher: Tensor,
                          gt_labels: Tensor, scale: Tensor, tau: float,
                          eps: float) -> Tensor:
    """``scale * tau * weight * (softmax(s/tau) - softmax(t/tau))``."""
    weight = wsld_weight(student, teacher, gt_labels, eps)
    soft = (widen(student) / tau).softmax(1)
    soft = soft - (widen(teacher.detach()) / tau).softmax(1)
    return ((weight * scale * tau).unsqueeze(1) * soft).to(student.dtype)


def fused_rows(student: Tensor, teacher: Tensor, gt_labels: Tensor,
               scale: Tensor, tau: float, eps: float,
               total: bool) -> Tensor:
    """WSLD loss of each row times ``scale``, or their sum.

    Args:
        student: Logits ``(N, C)`` or ``(N, C, *)``; receives the gradient.
        teacher: Logits of the same shape.
        gt_labels: Class indices ``(N, *)``, all in ``[0, C)``, or class
            probabilities shaped like the logits.
        scale: Factor of each row, ``(N, *)`` in float32 or float64: the
            precision of all that is computed.
        tau: Temperature.
        eps: Added to the teacher's cross-entropy, in nats.
        total: Whether to return the sum instead of the rows.

    Returns:
        ``(N, *)`` or a scalar, of ``scale``'s dtype.
    """
    return _FusedWSLD.apply(student, teacher, gt_labels, scale, tau, eps,
                            total)
