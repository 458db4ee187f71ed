"""Checks of what the distillation losses are given."""
from __future__ import annotations

import math
from numbers import Real
from typing import Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Older releases cannot tell.
_is_compiling = getattr(getattr(torch, 'compiler', None), 'is_compiling',
                        lambda: False)
_functorch_works = getattr(torch._C, '_are_functorch_transforms_active',
                           lambda: False)


def is_traced() -> bool:
    """Whether values cannot be read: torch.compile or torch.func at work."""
    return _is_compiling() or _functorch_works()


def is_transformed(logits: Tensor) -> bool:
    """Whether torch.func or forward-mode AD differentiates the logits."""
    return not _is_compiling() and (
        _functorch_works()
        or forward_ad.unpack_dual(logits).tangent is not None)


def has_class_indices(gt_labels: Tensor) -> bool:
    """Whether labels are class indices rather than class probabilities."""
    return not gt_labels.is_floating_point()


def check_inputs(student: Tensor,
                 teacher: Tensor,
                 gt_labels: Tensor,
                 ignore_index: int = -100,
                 num_classes: Optional[int] = None) -> None:
    """Refuse logits and labels that do not belong together.

    Values of labels are read only where that costs no synchronisation, that
    is on the CPU and outside ``torch.compile``. Elsewhere an index out of
    range fails in the indexing kernel, as it does in
    ``torch.nn.functional.cross_entropy``.

    Args:
        student: Logits of shape ``(N, C)`` or ``(N, C, *)``.
        teacher: Logits of the same shape.
        gt_labels: Class indices ``(N, *)`` of an integer dtype, or class
            probabilities of the logits' shape and a floating dtype.
        ignore_index: The class index that marks a row to leave out.
        num_classes: If given, the class count that the logits must have.

    Raises:
        TypeError: If an argument is no tensor or has an unusable dtype.
        ValueError: If shapes, class counts, devices or label values do not
            fit.
    """
    for name, value in (('student', student), ('teacher', teacher),
                        ('gt_labels', gt_labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor, got '
                            f'{type(value).__name__}')
    for name, logits in (('student', student), ('teacher', teacher)):
        if not logits.is_floating_point():
            raise TypeError(f'{name} must hold floating point logits, got '
                            f'{logits.dtype}')
        if logits.dim() < 2:
            raise ValueError(f'{name} must have shape (N, C) or (N, C, *), '
                             f'got {tuple(logits.shape)}')
        if logits.shape[1] < 1:
            raise ValueError(f'{name} must have at least one class, got '
                             f'shape {tuple(logits.shape)}')
    if student.shape[1] != teacher.shape[1]:
        raise ValueError('student and teacher must have the same classes, '
                         f'got {student.shape[1]} and {teacher.shape[1]}')
    if student.shape != teacher.shape:
        raise ValueError('student and teacher must have the same shape, got '
                         f'{tuple(student.shape)} and {tuple(teacher.shape)}')
    classes = student.shape[1]
    if num_classes is not None and classes != num_classes:
        raise ValueError(f'num_classes is {num_classes}, but the logits have '
                         f'{classes} classes')
    if not student.device == teacher.device == gt_labels.device:
        raise ValueError('student, teacher and gt_labels must be on one '
                         f'device, got {student.device}, {teacher.device} '
                         f'and {gt_labels.device}')
    if gt_labels.dtype == torch.bool or gt_labels.is_complex():
        raise TypeError('gt_labels must be class indices of an integer dtype '
                        'or class probabilities of a floating dtype, got '
                        f'{gt_labels.dtype}')
    _check_labels(gt_labels, student, classes, ignore_index)


def _check_labels(gt_labels: Tensor, student: Tensor, classes: int,
                  ignore_index: int) -> None:
    indices = has_class_indices(gt_labels)
    rows = student.shape[:1] + student.shape[2:]
    expected = rows if indices else student.shape
    if gt_labels.shape != expected:
        raise ValueError(
            'gt_labels must be class indices (integers) of shape '
            f'{tuple(rows)} or class probabilities (floating point) of shape '
            f'{tuple(student.shape)}, got {gt_labels.dtype} of shape '
            f'{tuple(gt_labels.shape)}')
    if indices and _is_compiling():
        _assert_in_graph(gt_labels, classes, ignore_index)
    if not _is_readable(gt_labels) or gt_labels.numel() == 0:
        return
    if not indices:
        if gt_labels.min() < 0:
            raise ValueError('gt_labels holds a negative class probability, '
                             f'{gt_labels.min().item()}')
        return
    low, high = gt_labels.aminmax()
    if low >= 0 and high < classes:
        return
    wrong = _out_of_range(gt_labels, classes, ignore_index)
    if wrong.any():
        raise ValueError(f'gt_labels must be in [0, {classes}) or '
                         f'ignore_index={ignore_index}, got '
                         f'{gt_labels[wrong][0].item()}')


def _is_readable(gt_labels: Tensor) -> bool:
    """Whether looking at values is possible and makes no device wait."""
    return gt_labels.device.type == 'cpu' and not is_traced()


def _out_of_range(gt_labels: Tensor, classes: int,
                  ignore_index: int) -> Tensor:
    wrong = (gt_labels < 0) | (gt_labels >= classes)
    return wrong & (gt_labels != ignore_index)


def _assert_in_graph(gt_labels: Tensor, classes: int,
                     ignore_index: int) -> None:
    """Refuse labels when the compiled code runs, by a RuntimeError."""
    wrong = _out_of_range(gt_labels, classes, ignore_index)
    torch._assert_async(
        ~wrong.any(), f'gt_labels must be in [0, {classes}) or '
        f'ignore_index={ignore_index}')


def split_labels(gt_labels: Tensor,
                 ignore_index: int) -> tuple[Tensor, Optional[Tensor]]:
    """Labels that can be used as they are, and which rows do not count.

    Returns:
        Class indices int64, 0 in rows that do not count, and where those
        are, None if known to be nowhere; or the class probabilities and
        None.
    """
    if not has_class_indices(gt_labels):
        return gt_labels, None
    ignored = gt_labels == ignore_index
    if _is_readable(gt_labels) and not ignored.any():
        return gt_labels.long(), None
    return gt_labels.long().masked_fill(ignored, 0), ignored


def check_number(name: str, value: float, *, above: float = -math.inf,
                 least: float = -math.inf) -> float:
    """A finite number, also one of numpy's, as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite, not above ``above`` or below
            ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f'{name} must be a number, got '
                        f'{type(value).__name__}')
    if not math.isfinite(value):
        raise ValueError(f'{name} must be finite, got {value}')
    if value <= above:
        raise ValueError(f'{name} must be above {above}, got {value}')
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')
    return float(value)


def widen(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they already are."""
    return logits if logits.dtype == torch.float64 else logits.float()
