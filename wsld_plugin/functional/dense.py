"""Labels of pixels and boxes, as their packages hand them over."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What two networks of a detector classify is the same only if delivered.
_ADVICE = (
    'boxes that were sampled for the teacher have to be delivered to the '
    'student, see configs/_base_/distill/wsld_frcnn.py')


def without_channel(gt_labels: Any, logits: Any) -> Any:
    """Class indices ``(N, 1, H, W)`` as ``(N, H, W)``, all else as it is."""
    if (isinstance(gt_labels, Tensor) and isinstance(logits, Tensor)
            and gt_labels.dim() == logits.dim() == 4
            and gt_labels.shape[1] == 1 < logits.shape[1]
            and not gt_labels.is_floating_point()):
        return gt_labels.squeeze(1)
    return gt_labels


def check_rows(gt_labels: Tensor, teacher_labels: Tensor) -> None:
    """Refuse rows that are not the same things for both networks.

    Raises:
        ValueError: If their labels differ. A device is waited for.
    """
    if gt_labels.shape != teacher_labels.shape:
        raise ValueError(
            'gt_labels and teacher_labels must be labels of the same rows, '
            f'got shapes {tuple(gt_labels.shape)} and '
            f'{tuple(teacher_labels.shape)}: {_ADVICE}')
    if not torch.equal(gt_labels, teacher_labels):
        differ = int((gt_labels != teacher_labels).sum())
        raise ValueError(
            f'{differ} of {gt_labels.numel()} rows have another label in '
            f'teacher_labels than in gt_labels: {_ADVICE}')
