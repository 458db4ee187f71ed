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
from ..functional import (
    log_cross_entropy,
    regularization_samples,
    wsld_weight,
)
from .errors import AnalysisError
from .pixels import GRID, draw_maps, is_dense
from .predictions import (
    evaluation_loader,
    logits,
    student_network,
    teacher_network,
)
from .report import html_page
from .sample_drawings import draw_samples, draw_shares, draw_weights
from .tables import write_results

# Classes that a network finds likeliest.
_TOP = 3
# Pictures in a grid of the least or most weight.
_PICTURES = 12
# Of a bar chart or table that is still read.
_SHOWN_CLASSES = 20
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
        out: Folder for the page, its pictures and the tables as CSV; by
            default ``work_dirs/CONFIG/regularization_SPLIT``.

    Raises:
        AnalysisError: If the config describes no distillation or has no such
            split, or none of its samples counts.
        CheckpointMismatchError: If a checkpoint's weights do not fit.
    """
    settings = loss_settings(config)
    loader = evaluation_loader(config, split)
    names, networks = _networks(config, [*map(str, checkpoints)])
    samples = _inspect(names, networks, loader, settings)
    if samples.empty:
        raise AnalysisError(f'the split {split} has no sample that counts')
    last = samples[samples['checkpoint'] == names[-1]]
    classes = _summary(samples, ['checkpoint', 'label', 'class'])
    striking = _striking(classes[classes['checkpoint'] == names[-1]])
    totals = _summary(samples, ['checkpoint'])
    files: dict[str, Any] = {
        'shares.png': draw_shares(totals, striking),
        'weights.png': draw_weights(samples)
    }
    if is_dense(networks[0]):
        files['maps.png'] = draw_maps(
            networks[-2], networks[-1], loader, settings)
    else:
        to_rgb = getattr(networks[0].data_preprocessor, 'to_rgb', False)
        for name, rows in (('least', last.nsmallest(_PICTURES, 'weight')),
                           ('most', last.nlargest(_PICTURES, 'weight'))):
            files[f'{name}_weight.png'] = draw_samples(
                rows, loader.dataset, to_rgb)
    stem = Path(config.filename or 'config').stem
    files.update({
        'samples.csv': samples,
        'classes.csv': classes,
        'checkpoints.csv': totals,
        'regularization.html':
        _page(f'{stem}, {split}', settings, totals, striking, files)
    })
    out = out or Path('work_dirs', stem, f'regularization_{split}')
    write_results({out / name: result for name, result in files.items()})
    return RegularizationReport(samples, classes, totals,
                                out / 'regularization.html')


def loss_settings(config: Config) -> LossSettings:
    """Settings of a distillation's loss, as its config gives them.

    Raises:
        AnalysisError: If there is no ``WSLDLoss`` or other loss with a
            ``tau``, or if several differ.
    """
    distiller = (config.get('model') or {}).get('distiller')
    if not distiller:
        raise AnalysisError(
            'the config has no model.distiller: regularization samples are '
            'those of a distillation')
    losses = list((distiller.get('distill_losses') or {}).values())
    # A class or its name, maybe with that of a registry.
    chosen = [
        loss for loss in losses
        if str(getattr(loss.get('type'), '__name__', loss.get('type'))
               ).split('.')[-1] == 'WSLDLoss'
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
        {name: values.numpy()
         for name, values in columns.items()})
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
    """Names of checkpoints, by epoch, file or path; students, teacher."""
    if not checkpoints:
        raise AnalysisError('checkpoints must name at least one, got none')
    loaded = {path: read_checkpoint(path) for path in checkpoints}
    epochs = [
        f'epoch {checkpoint.get("meta", {}).get("epoch")}'
        for checkpoint in loaded.values()
    ]
    for names in (epochs, [Path(path).stem for path in loaded], [*loaded]):
        # Those of trainings by iterations are all of epoch 0.
        if len({*names}) == len(names) and not {
                'epoch None', 'epoch 0'} & {*names}:
            break
    networks = [
        student_network(config, checkpoint, path)
        for path, checkpoint in loaded.items()
    ]
    first = checkpoints[0]
    return names, [*networks, teacher_network(config, loaded[first], first)]


def _inspect(names: Sequence[str], networks: Sequence[Any], loader: Any,
             settings: LossSettings) -> pd.DataFrame:
    """A split's samples, at one checkpoint after the other."""
    classes = getattr(loader.dataset, 'metainfo', {}).get('classes') or ()
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in names}
    first = 0
    batches = track(
        loader, 'Samples', transient=True, disable=not sys.stdout.isatty())
    for (*students, teacher), labels in logits(networks, batches):
        for name, student in zip(names, students):
            found = inspect_batch(student, teacher, labels, settings, classes,
                                  first)
            found.insert(0, 'checkpoint', name)
            parts[name] += [found] * (not found.empty)
        first += len(labels)
    if not any(parts.values()):
        return pd.DataFrame()
    samples = pd.concat([found for part in parts.values() for found in part],
                        ignore_index=True)
    # Groups are sorted as the checkpoints are, not by the alphabet.
    samples['checkpoint'] = pd.Categorical(samples['checkpoint'], names)
    return samples


def _summary(samples: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    groups = samples.groupby(by, observed=True)
    return pd.DataFrame({
        'samples': groups.size(),
        'regularization': groups['regularization'].sum(),
        'share (%)': 100 * groups['regularization'].mean(),
        'mean weight': groups['weight'].mean(),
        'student CE': groups['ce_student'].mean(),
        'teacher CE': groups['ce_teacher'].mean(),
        'student top-1 (%)': 100 * groups['student_right'].mean(),
        'teacher top-1 (%)': 100 * groups['teacher_right'].mean(),
    }).reset_index()


def _striking(classes: pd.DataFrame) -> pd.DataFrame:
    """Classes by their share; of many, the highest and the lowest."""
    ranked = classes.sort_values('share (%)', ascending=False, kind='stable')
    half = _SHOWN_CLASSES // 2
    return ranked if len(ranked) <= _SHOWN_CLASSES else pd.concat(
        [ranked.head(half), ranked.tail(half)])


def _page(title: str, settings: LossSettings, totals: pd.DataFrame,
          striking: pd.DataFrame, pictures: dict[str, bytes]) -> str:
    return html_page(f'Regularization samples: {title}', [
        ('', _INTRODUCTION.format(settings.tau)),
        ('By checkpoint', totals),
        ('Share of regularization samples', pictures['shares.png']),
        ('Weights', pictures['weights.png']),
        (f'By class; of more than {_SHOWN_CLASSES}, those with the highest '
         'and the lowest share',
         striking.drop(columns=['checkpoint', 'label'])),
        *((title, pictures[name]) for title, name in (
            ('Samples with the least weight', 'least_weight.png'),
            ('Samples with the most weight', 'most_weight.png'),
            (f'Samples are {GRID} x {GRID} pixels of each picture; here are '
             'all of some', 'maps.png')) if name in pictures),
    ])
