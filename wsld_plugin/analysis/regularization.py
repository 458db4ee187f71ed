"""Weights and regularization samples of a split, at several checkpoints."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from mmengine.config import Config
from rich.progress import track
from torch import Tensor

from ..checkpoints import read_checkpoint
from ..functional.regularization import regularization_samples
from ..functional.weight import log_cross_entropy, wsld_weight
from . import predictions
from .errors import AnalysisError
from .pixels import GRID, draw_maps, is_dense
from .report import html_page
from .sample_drawings import draw_samples
from .tables import write_results

# Classes that a network finds likeliest.
_TOP = 3
# Pictures in a grid of the least or most weight.
_PICTURES = 12
_INTRODUCTION = (
    'A regularization sample is one on which the part of the soft-label loss '
    "that lowers the variance has a larger derivative by the label's logit "
    'than the part that lowers the bias, here at temperature {:g}. The weight '
    'is 1 - exp(-CE of the student / CE of the teacher): 0.632 where both are '
    'equally good, less where the student is better. Cross-entropies (CE) are '
    'at temperature 1, in nats.')


class LossSettings(NamedTuple):
    """What weights and regularization samples depend on, see WSLDLoss."""

    tau: float
    eps: float = 0.0
    ignore_index: int = -100


class RegularizationReport(NamedTuple):
    """What :func:`regularization_report` found.

    Attributes:
        samples: A row for each sample of each checkpoint, with the columns
            of :func:`inspect_batch` and ``checkpoint``.
        classes: A row for each class of each checkpoint: counts, shares and
            top-1 accuracies in %, means of the weight and of the
            cross-entropies in nats.
        checkpoints: The same over all classes.
        page: HTML file that shows all of it.
    """

    samples: pd.DataFrame
    classes: pd.DataFrame
    checkpoints: pd.DataFrame
    page: Path


def regularization_report(config: Config,
                          checkpoints: Sequence[str | Path],
                          *,
                          split: str = 'val',
                          out: Path | None = None) -> RegularizationReport:
    """Count the regularization samples of a split, and show striking ones.

    Args:
        config: Of a distillation.
        checkpoints: Of its student or of the distillation, such as of
            several epochs; paths or URLs.
        split: ``'train'``, ``'val'`` or ``'test'``, all without augmentation.
        out: Folder for the page and the tables as CSV; by default
            ``work_dirs/CONFIG/regularization_SPLIT``.

    Raises:
        AnalysisError: If the config describes no distillation or has no such
            split, or none of its samples counts.
        CheckpointMismatchError: If a checkpoint's weights do not fit.
    """
    settings = loss_settings(config)
    loader = predictions.evaluation_loader(config, split)
    names, networks = _networks(config, [*map(str, checkpoints)])
    samples = _inspect(names, networks, loader, settings)
    if samples.empty:
        raise AnalysisError(f'the split {split} has no sample that counts')
    last = samples[samples['checkpoint'] == names[-1]]
    classes = _summary(samples, ['checkpoint', 'label', 'class'])
    totals = _summary(samples, ['checkpoint'])
    if is_dense(networks[0]):
        striking = [(f'Samples are {GRID} x {GRID} pixels of each picture; '
                     'here are all of some',
                     draw_maps(networks[-2], networks[-1], loader,
                               settings))]
    else:
        to_rgb = getattr(networks[0].data_preprocessor, 'to_rgb', False)
        striking = [
            (f'Samples with the {name} weight',
             draw_samples(rows, loader.dataset, to_rgb))
            for name, rows in (('least', last.nsmallest(_PICTURES, 'weight')),
                               ('most', last.nlargest(_PICTURES, 'weight')))
        ]
    stem = Path(config.filename or 'config').stem
    page = html_page(f'Regularization samples: {stem}, {split}', [
        ('', _INTRODUCTION.format(settings.tau)),
        ('By checkpoint', totals),
        ('By class, at the last checkpoint',
         classes[classes['checkpoint'] == names[-1]].sort_values(
             'share (%)', ascending=False, kind='stable').drop(
                 columns=['checkpoint', 'label'])),
        *striking,
    ])
    out = out or Path('work_dirs', stem, f'regularization_{split}')
    write_results({
        out / 'samples.csv': samples,
        out / 'classes.csv': classes,
        out / 'checkpoints.csv': totals,
        out / 'regularization.html': page
    })
    return RegularizationReport(samples, classes, totals,
                                out / 'regularization.html')


def loss_settings(config: Config) -> LossSettings:
    """Settings of a distillation's loss, the first of several.

    Raises:
        AnalysisError: If there is no ``WSLDLoss`` or other loss with a
            ``tau``.
    """
    distiller = (config.get('model') or {}).get('distiller')
    if not distiller:
        raise AnalysisError(
            'the config has no model.distiller: regularization samples are '
            'those of a distillation')
    losses = [*(distiller.get('distill_losses') or {}).values()]
    chosen = [loss for loss in losses if 'WSLDLoss' in str(loss.get('type'))
              ] or [loss for loss in losses if 'tau' in loss]
    if not chosen:
        raise AnalysisError('model.distiller.distill_losses must have a '
                            'WSLDLoss, or a loss with a tau')
    return LossSettings(
        chosen[0].get('tau', 1.0),
        **{key: chosen[0][key] for key in ('eps', 'ignore_index')
           if key in chosen[0]})


def inspect_batch(student: Tensor,
                  teacher: Tensor,
                  gt_labels: Tensor,
                  settings: LossSettings,
                  classes: Sequence[str] = (),
                  first: int = 0) -> pd.DataFrame:
    """Look at a batch; samples that do not count are left out.

    Args:
        student: Logits ``(N, C)``.
        teacher: Logits of the same shape.
        gt_labels: Class indices ``(N,)``.
        settings: Of the loss.
        classes: Names of the classes; their numbers where it ends.
        first: Position of the batch's first sample in the split.

    Returns:
        At most N rows: ``sample``, the position in the split; ``label``, its
        index, and ``class``, its name; WSLD's ``weight`` in [0, 1]; the
        cross-entropies ``ce_student`` and ``ce_teacher`` at temperature 1 in
        nats; whether it is one of ``regularization``; whether
        ``student_right`` and ``teacher_right`` are; and the likeliest
        classes, ``student_top`` and ``teacher_top``, as text.
    """
    kept = gt_labels != settings.ignore_index
    student, teacher, gt_labels = (student[kept], teacher[kept],
                                   gt_labels[kept])
    columns = {
        'sample': kept.nonzero().flatten() + first,
        'label': gt_labels,
        'weight': wsld_weight(student, teacher, gt_labels, settings.eps),
        'ce_student': log_cross_entropy(student, gt_labels).exp(),
        'ce_teacher': log_cross_entropy(teacher, gt_labels).exp(),
        'regularization': regularization_samples(
            student, teacher, gt_labels, tau=settings.tau),
        'student_right': student.argmax(1) == gt_labels,
        'teacher_right': teacher.argmax(1) == gt_labels,
    }
    table = pd.DataFrame(
        {name: values.numpy() for name, values in columns.items()})
    names = [*classes, *map(str, range(len(classes), student.shape[1]))]
    table.insert(2, 'class', [names[label] for label in table['label']])
    return table.assign(
        student_top=_likeliest(student, names),
        teacher_top=_likeliest(teacher, names))


def _likeliest(logits: Tensor, names: Sequence[str]) -> list[str]:
    best = logits.double().softmax(1).topk(min(_TOP, logits.shape[1]))
    return [
        ' > '.join(f'{prob:.1%} {names[label]}' for prob, label in zip(*row))
        for row in zip(best.values.tolist(), best.indices.tolist())
    ]


def _networks(config: Config,
              checkpoints: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Names of checkpoints, by file or path; students, teacher."""
    if not checkpoints:
        raise AnalysisError('checkpoints must name at least one, got none')
    loaded = {path: read_checkpoint(path) for path in checkpoints}
    names = [Path(path).stem for path in loaded]
    if len({*names}) < len(names):
        names = [*loaded]
    first = checkpoints[0]
    return names, [
        *(predictions.student_network(config, checkpoint, path)
          for path, checkpoint in loaded.items()),
        predictions.teacher_network(config, loaded[first], first)
    ]


def _inspect(names: Sequence[str], networks: Sequence[Any], loader: Any,
             settings: LossSettings) -> pd.DataFrame:
    """A split's samples, at one checkpoint after the other."""
    classes = getattr(loader.dataset, 'metainfo', {}).get('classes') or ()
    parts: list[pd.DataFrame] = []
    first = 0
    batches = track(
        loader, 'Samples', transient=True, disable=not sys.stdout.isatty())
    for (*students, teacher), labels in predictions.logits(networks, batches):
        for name, student in zip(names, students):
            found = inspect_batch(student, teacher, labels, settings, classes,
                                  first)
            found.insert(0, 'checkpoint', name)
            parts += [found] * (not found.empty)
        first += len(labels)
    if not parts:
        return pd.DataFrame()
    samples = pd.concat(parts)
    # Groups are sorted as the checkpoints are, not by the alphabet.
    samples['checkpoint'] = pd.Categorical(samples['checkpoint'], names)
    return samples.sort_values('checkpoint', kind='stable', ignore_index=True)


def _summary(samples: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    groups = samples.groupby(by, observed=True)
    return pd.DataFrame({
        'samples': groups.size(),
        'regularization': groups['regularization'].sum(),
        'share (%)': 100 * groups['regularization'].mean(),
        'mean weight': groups['weight'].mean(),
        **{f'{share:.0%} of weights below': groups['weight'].quantile(share)
           for share in (0.1, 0.5, 0.9)},
        'student CE': groups['ce_student'].mean(),
        'teacher CE': groups['ce_teacher'].mean(),
        'student top-1 (%)': 100 * groups['student_right'].mean(),
        'teacher top-1 (%)': 100 * groups['teacher_right'].mean(),
    }).reset_index()
