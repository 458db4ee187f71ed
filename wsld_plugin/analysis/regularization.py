"""Weights and regularization samples of a split, at several checkpoints."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from ..functional import (
    log_cross_entropy,
    regularization_samples,
    wsld_weight,
)
from .drawing import png
from .errors import AnalysisError

TOP = 3
# Of a bar chart or table that is still read.
_SHOWN_CLASSES = 20
# What the weight is where student and teacher are equally good.
_EQUAL = 1 - np.exp(-1)


class LossSettings(NamedTuple):
    """What the weights and regularization samples depend on.

    Attributes:
        tau: Temperature of the soft labels.
        eps: Added to the teacher's cross-entropy inside the weight, in nats.
        ignore_index: Label of samples that do not count.
    """

    tau: float
    eps: float = 0.0
    ignore_index: int = -100


class Samples(NamedTuple):
    """A split as a student and its teacher see it, arrays over the samples.

    Attributes:
        position: In the split.
        label: Class index.
        weight: WSLD's weight in [0, 1].
        ce_student: Cross-entropy at temperature 1 in nats.
        ce_teacher: The teacher's.
        regularization: Whether it is a regularization sample.
        student_top: The student's likeliest classes, ``(N, 3)`` or fewer.
        student_probs: Their probabilities at temperature 1.
        teacher_top: The teacher's likeliest classes.
        teacher_probs: Their probabilities.
    """

    position: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    ce_student: np.ndarray
    ce_teacher: np.ndarray
    regularization: np.ndarray
    student_top: np.ndarray
    student_probs: np.ndarray
    teacher_top: np.ndarray
    teacher_probs: np.ndarray


def loss_settings(cfg: Config) -> LossSettings:
    """Settings of a distillation's loss, as its config gives them.

    Of the losses called ``WSLDLoss``, or, without one, of those that have a
    ``tau``.

    Raises:
        AnalysisError: If there is no such loss, or several that differ.
    """
    distiller = cfg.model.get('distiller') or {}
    losses = list((distiller.get('distill_losses') or {}).values())
    chosen = [
        loss for loss in losses
        if _name(loss.get('type')) == 'WSLDLoss'
    ] or [loss for loss in losses if 'tau' in loss]
    settings = {
        LossSettings(*(loss.get(key, default) for key, default in (
            ('tau', 1.0), ('eps', 0.0), ('ignore_index', -100))))
        for loss in chosen
    }
    if len(settings) != 1:
        raise AnalysisError(
            'model.distiller.distill_losses must have one WSLDLoss, or one '
            f'loss with a tau, got {len(settings)}')
    return settings.pop()


def inspect_batch(student: Tensor, teacher: Tensor, gt_labels: Tensor,
                  first: int, settings: LossSettings) -> Samples:
    """Look at a batch; samples that do not count are left out.

    Args:
        student: Logits ``(N, C)``.
        teacher: Logits of the same shape.
        gt_labels: Class indices ``(N,)``.
        first: Position of the batch's first sample in the split.
        settings: Of the loss.

    Returns:
        At most N samples.
    """
    kept = gt_labels != settings.ignore_index
    student, teacher, gt_labels = (student[kept], teacher[kept],
                                   gt_labels[kept])
    top = min(TOP, student.shape[1])
    student_best = student.double().softmax(1).topk(top)
    teacher_best = teacher.double().softmax(1).topk(top)
    return Samples(*(values.numpy() for values in (
        kept.nonzero().flatten() + first,
        gt_labels,
        wsld_weight(student, teacher, gt_labels, settings.eps),
        log_cross_entropy(student, gt_labels).exp(),
        log_cross_entropy(teacher, gt_labels).exp(),
        regularization_samples(student, teacher, gt_labels, tau=settings.tau),
        student_best.indices,
        student_best.values,
        teacher_best.indices,
        teacher_best.values,
    )))


def join(parts: Sequence[Samples]) -> Samples:
    """Batches one after the other."""
    return Samples(*map(np.concatenate, zip(*parts)))


def sample_rows(checkpoints: Mapping[str, Samples],
                classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each checkpoint and sample.

    Args:
        checkpoints: Samples by the checkpoint's name.
        classes: Names of the classes.

    Returns:
        Rows for :func:`wsld_plugin.analysis.csv_table`.
    """
    return [
        {
            'checkpoint': name,
            'sample': int(samples.position[i]),
            'label': classes[samples.label[i]],
            'weight': float(samples.weight[i]),
            'ce_student': float(samples.ce_student[i]),
            'ce_teacher': float(samples.ce_teacher[i]),
            'regularization': int(samples.regularization[i]),
            'student_top': _names(samples.student_top[i], classes),
            'teacher_top': _names(samples.teacher_top[i], classes),
        } for name, samples in checkpoints.items()
        for i in range(len(samples.label))
    ]


def class_rows(checkpoints: Mapping[str, Samples],
               classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each checkpoint and class that has samples."""
    return [
        {
            'checkpoint': name,
            'class': classes[label],
            **_summary(samples, samples.label == label)
        } for name, samples in checkpoints.items()
        for label in np.unique(samples.label)
    ]


def checkpoint_rows(
        checkpoints: Mapping[str, Samples]) -> list[dict[str, Any]]:
    """A row for each checkpoint, over all classes."""
    return [
        {
            'checkpoint': name,
            **_summary(samples, slice(None)),
            'student top-1 (%)': _top1(samples.student_top, samples.label),
            'teacher top-1 (%)': _top1(samples.teacher_top, samples.label),
        } for name, samples in checkpoints.items()
    ]


def striking_classes(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of :func:`class_rows`, by share; of many, the ends of the list."""
    rows = sorted(rows, key=lambda row: -row['share (%)'])
    if len(rows) <= _SHOWN_CLASSES:
        return rows
    half = _SHOWN_CLASSES // 2
    return rows[:half] + rows[-half:]


def striking_samples(samples: Samples, count: int,
                     most: bool) -> np.ndarray:
    """Rows of the samples with the most or the least weight, in order."""
    order = np.argsort(samples.weight, kind='stable')
    return order[::-1][:count] if most else order[:count]


def draw_shares(checkpoints: Mapping[str, Samples],
                classes: Sequence[str]) -> bytes:
    """Draw the share of regularization samples, as PNG.

    By checkpoint on the left, by class at the last one on the right.
    """
    from matplotlib.figure import Figure
    last = list(checkpoints)[-1]
    rows = striking_classes(class_rows({last: checkpoints[last]}, classes))
    figure = Figure(
        figsize=(10, max(3.4, 1.2 + 0.22 * len(rows))), layout='constrained')
    left, right = figure.subplots(1, 2)
    shares = [
        100 * samples.regularization.mean()
        for samples in checkpoints.values()
    ]
    left.plot(range(len(shares)), shares, marker='o')
    left.set_xticks(range(len(shares)), list(checkpoints), rotation=45)
    left.set(
        ylabel='regularization samples (%)', ylim=(0, 1.1 * max(shares) or 1))
    right.barh([row['class'] for row in rows],
               [row['share (%)'] for row in rows])
    right.invert_yaxis()
    right.set(
        xlabel='regularization samples (%)',
        title=f'by class, {last}' +
        (', highest and lowest' if len(rows) == _SHOWN_CLASSES else ''))
    for axes, along in ((left, 'y'), (right, 'x')):
        axes.grid(alpha=0.3, axis=along)
    return png(figure)


def draw_weights(checkpoints: Mapping[str, Samples]) -> bytes:
    """Draw a histogram of the weights at each checkpoint, as PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4), layout='constrained')
    axes = figure.subplots()
    shades = colormaps['viridis'](np.linspace(0, 0.9, len(checkpoints)))
    for (name, samples), shade in zip(checkpoints.items(), shades):
        axes.hist(
            samples.weight,
            bins=40,
            range=(0, 1),
            histtype='step',
            linewidth=1.5,
            color=shade,
            label=name)
    axes.axvline(
        _EQUAL, color='0.4', linestyle='--', label='equal to the teacher')
    axes.set(xlabel='weight', ylabel='samples', yscale='log')
    axes.legend(loc='upper left', bbox_to_anchor=(1, 1))
    axes.grid(alpha=0.3)
    return png(figure)


def draw_samples(samples: Samples, chosen: np.ndarray,
                 pictures: Sequence[np.ndarray], classes: Sequence[str],
                 title: str) -> bytes:
    """Draw pictures with what both networks say about them, as PNG.

    Args:
        samples: All samples.
        chosen: Rows of the samples to draw.
        pictures: Theirs, uint8 ``(H, W, 3)``, RGB.
        classes: Names of the classes.
        title: Above all.
    """
    from matplotlib.figure import Figure
    columns = 6
    lines = -(-len(chosen) // columns)
    figure = Figure(figsize=(12, 0.6 + 3.3 * lines), layout='constrained')
    figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i, picture in zip(grid.flat, chosen, pictures):
        axes.imshow(picture, interpolation='nearest')
        text = [
            f'weight {samples.weight[i]:.3g}, label '
            f'{classes[samples.label[i]]}'
        ]
        for who, top, probs in (
            ('teacher', samples.teacher_top[i], samples.teacher_probs[i]),
            ('student', samples.student_top[i], samples.student_probs[i])):
            text.append(f'{who}:')
            text += [
                f'  {100 * prob:5.1f}%  {classes[label][:24]}'
                for label, prob in zip(top, probs)
            ]
        axes.set_title('\n'.join(text), fontsize=8, loc='left')
    return png(figure)


def picture(inputs: Tensor, to_rgb: bool) -> np.ndarray:
    """What a pipeline made of a picture, to be drawn.

    Args:
        inputs: ``(3, H, W)`` or ``(1, H, W)``, values in [0, 255].
        to_rgb: Whether the channels are blue, green, red.

    Returns:
        uint8, ``(H, W, 3)``, RGB.
    """
    if to_rgb:
        inputs = inputs.flip(0)
    inputs = inputs.expand(3, -1, -1).clamp(0, 255).to(torch.uint8)
    return inputs.permute(1, 2, 0).numpy()


def _top1(top: np.ndarray, label: np.ndarray) -> float:
    return 100 * float((top[:, 0] == label).mean())


def _summary(samples: Samples,
             chosen: np.ndarray | slice) -> dict[str, Any]:
    return {
        'samples': len(samples.label[chosen]),
        'regularization': int(samples.regularization[chosen].sum()),
        'share (%)': 100 * float(samples.regularization[chosen].mean()),
        'mean weight': float(samples.weight[chosen].mean()),
        'student CE': float(samples.ce_student[chosen].mean()),
        'teacher CE': float(samples.ce_teacher[chosen].mean()),
    }


def _name(kind: Any) -> str:
    """Name of a class that a config gives as it is or by its name."""
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def _names(top: np.ndarray, classes: Sequence[str]) -> str:
    return ' > '.join(classes[label] for label in top)
