"""Checks of what the distillation losses are given."""
from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Older releases cannot tell.
_is_compiling = getattr(getattr(torch, 'compiler', None), 'is_compiling',
                        lambda: False)
_functorch_works = getattr(torch._C, '_are_functorch_transforms_active',
                           lambda: False)


# Probabilities in bfloat16 may add up to this.
_LARGEST_SUM = 1.01


def is_traced() -> bool:
    """Whether ``torch.compile`` or ``torch.func`` is at work."""
    return _is_compiling() or _functorch_works()


def is_transformed(logits: Tensor) -> bool:
    """Whether ``torch.func`` or forward mode differentiates the logits."""
    return not _is_compiling() and (
        _functorch_works()
        or forward_ad.unpack_dual(logits).tangent is not None)


def widen(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they already are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def has_class_indices(gt_labels: Tensor) -> bool:
    """Whether labels are class indices rather than class probabilities."""
    return not gt_labels.is_floating_point()


def split_labels(gt_labels: Tensor,
                 ignore_index: int) -> tuple[Tensor, Optional[Tensor]]:
    """Labels that can be used as they are, and which rows do not count.

    The second is None if all rows are known to count.
    """
    if not has_class_indices(gt_labels):
        return gt_labels, None
    # First, or the index would wrap around: -100 is 156 as uint8.
    gt_labels = gt_labels.long()
    ignored = gt_labels == ignore_index
    if _is_readable(gt_labels) and not ignored.any():
        return gt_labels, None
    return gt_labels.masked_fill(ignored, 0), ignored


def check_number(name: str,
                 value: float,
                 *,
                 above: float = -math.inf,
                 least: float = -math.inf,
                 integer: bool = False) -> float:
    """A finite number, also one of numpy's, as a float or an integer."""
    kind, what = (Integral, 'an integer') if integer else (Real, 'a number')
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f'{name} must be {what}, got {type(value).__name__}')
    if not math.isfinite(value):
        raise ValueError(f'{name} must be finite, got {value}')
    if value <= above:
        raise ValueError(f'{name} must be above {above}, got {value}')
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')
    return int(value) if integer else float(value)


def check_one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Refuse what is not among a few values."""
    if value not in known:
        raise ValueError(f'{name} must be one of {known}, got {value!r}')


def check_inputs(student: Tensor,
                 teacher: Tensor,
                 gt_labels: Tensor,
                 ignore_index: Optional[int] = -100,
                 num_classes: Optional[int] = None) -> None:
    """Refuse logits and labels that do not belong together.

    Values of labels are read only where no device has to wait, that is on
    the CPU. On others they fail in a check on the device, from torch 2.1 on,
    or as in ``torch.nn.functional.cross_entropy`` where they index; under
    ``torch.compile`` a RuntimeError is raised when the compiled code runs.
    """
    for name, value in (('student', student), ('teacher', teacher),
                        ('gt_labels', gt_labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor, got '
                            f'{type(value).__name__}')
        if name != 'gt_labels' and not value.is_floating_point():
            raise TypeError(f'{name} must hold floating point logits, got '
                            f'{value.dtype}')
    shape = tuple(student.shape)
    if len(shape) < 2 or shape[1] < 1:
        raise ValueError('student must have shape (N, C) or (N, C, *) with '
                         f'at least one class, got {shape}')
    if teacher.shape != shape:
        raise ValueError('student and teacher must have the same shape (N, '
                         f'C, *), got {shape} and {tuple(teacher.shape)}')
    if num_classes is not None and shape[1] != num_classes:
        raise ValueError(f'num_classes is {num_classes}, but the logits have '
                         f'{shape[1]} classes')
    if not student.device == teacher.device == gt_labels.device:
        raise ValueError('student, teacher and gt_labels must be on one '
                         f'device, got {student.device}, {teacher.device} '
                         f'and {gt_labels.device}')
    if gt_labels.dtype == torch.bool or gt_labels.is_complex():
        raise TypeError('gt_labels must be class indices of an integer dtype '
                        'or class probabilities of a floating dtype, got '
                        f'{gt_labels.dtype}')
    rows = shape[:1] + shape[2:]
    if gt_labels.shape != (rows if has_class_indices(gt_labels) else shape):
        raise ValueError(
            f'gt_labels must be class indices (integers) of shape {rows} or '
            f'class probabilities (floating point) of shape {shape}, got '
            f'{gt_labels.dtype} of shape {tuple(gt_labels.shape)}')
    _check_labels(gt_labels, shape[1], ignore_index)


def _check_labels(gt_labels: Tensor, classes: int,
                  ignore_index: Optional[int]) -> None:
    readable = _is_readable(gt_labels) and gt_labels.numel() > 0
    if not has_class_indices(gt_labels):
        if readable and gt_labels.min() < 0:
            raise ValueError('gt_labels holds a negative class probability, '
                             f'{gt_labels.min().item()}')
        sums = gt_labels.sum(1)
        _refuse(readable, sums > _LARGEST_SUM, sums,
                'gt_labels must hold class probabilities, which add up to 1; '
                'labels of a multi-label (sigmoid) head, whose classes do '
                'not compete, have no softmax to distil')
        return
    gt_labels = gt_labels.long()
    # Not every weighting indexes by the label, which would fail as well.
    on_gpu = gt_labels.is_cuda and not is_traced()
    if not (readable or on_gpu or _is_compiling()) or (
            readable and gt_labels.min() >= 0 and gt_labels.max() < classes):
        return
    wrong = (gt_labels < 0) | (gt_labels >= classes)
    message = f'gt_labels must be in [0, {classes})'
    if ignore_index is not None:
        wrong &= gt_labels != ignore_index
        message += f' or ignore_index={ignore_index}'
    _refuse(readable, wrong, gt_labels, message, classes)


def _refuse(readable: bool, wrong: Tensor, values: Tensor, message: str,
            background: Optional[int] = None) -> None:
    if readable:
        if wrong.any():
            found = values[wrong][0].item()
            hint = (' (a detector that ends in a sigmoid counts the '
                    'background behind its classes and has no softmax to '
                    'distil: docs/dense.md)') if found == background else ''
            raise ValueError(f'{message}, got {found}{hint}')
    elif not _functorch_works() and hasattr(torch, 'compiler'):
        torch._assert_async(~wrong.any(), message)


def _is_readable(gt_labels: Tensor) -> bool:
    """Whether looking at values is possible and makes no device wait."""
    return gt_labels.device.type == 'cpu' and not is_traced()
