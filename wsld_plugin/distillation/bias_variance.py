"""Error of students trained on different parts of the data, decomposed."""
from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from mmengine.config import Config
from torch import Tensor, nn

from .. import analysis
from ..analysis import AnalysisError
from ..analysis.drawing import plain, png, whole_epochs
from ..analysis.tables import write_results
from ..checkpoints import read_checkpoint, write_atomically
from ..functional import Jackknife, bias_variance, jackknife
from .trainings import Training, run_trainings

# Epochs at which bias and variance are measured, unless asked otherwise.
_POINTS = 6
# The mean prediction's own bias, whose change distillation explains.
PARTS = ('error', 'noise', 'bias', 'variance', 'bias change',
         'variance change')
_DRAWN = PARTS[:1] + PARTS[2:4]


class BiasVarianceReport(NamedTuple):
    """What :func:`bias_variance_report` found.

    Attributes:
        numbers: Of :func:`wsld_plugin.analysis.decomposition_table`.
        table: The same to read, a row for each config and epoch.
        picture: PNG file of error, bias and variance over the epochs; the
            numbers are beside it as ``.csv``, the table as ``.md``.
    """

    numbers: pd.DataFrame
    table: pd.DataFrame
    picture: Path


def bias_variance_report(
    configs: Sequence[Config],
    *,
    runs: int = 5,
    splits: str = 'disjoint',
    split: str = 'test',
    interval: int | None = None,
    out: Path | None = None
) -> BiasVarianceReport:
    """Train each config several times, and decompose the students' error.

    Each run learns from other samples, the same ones for all configs. The
    same call again goes on where it was cut, and repeats no finished run.

    Args:
        configs: With names and one training set; where one of them has no
            teacher, the others are compared with it.
        runs: Trainings of each config, at least 2.
        splits: What a run learns from: ``'disjoint'``, a part of the
            training set that no other run has, or ``'bootstrap'``, as many
            samples drawn with replacement.
        split: Whose error is decomposed, ``'val'`` or ``'test'``.
        interval: Epochs between two decompositions; by default a sixth of
            the training.
        out: Folder for runs and results; by default
            ``work_dirs/bias_variance``.

    Raises:
        AnalysisError: If the configs cannot be compared in this way.
        TrainingError: As :func:`run_trainings`.
    """
    named = {Path(cfg.filename or 'config').stem: cfg for cfg in configs}
    if len(named) < len(configs) or not named:
        raise AnalysisError('expected configs with different names')
    _check(named, runs, splits, split, interval)
    out = out or Path('work_dirs', 'bias_variance')
    parts = runs if splits == 'disjoint' else None
    trainings = {
        name: [_training(cfg, out / name, run, parts, interval)
               for run in range(runs)] for name, cfg in named.items()
    }
    # Each split of the data for all configs, before the next one.
    run_trainings([run for group in zip(*trainings.values()) for run in group],
                  _predict)
    numbers = decomposition_table(_decompositions(trainings, split))
    table = readable_decomposition(numbers)
    picture = out / f'bias_variance_{split}.png'
    write_results({
        picture.with_suffix('.csv'): numbers,
        picture.with_suffix('.md'): table,
        picture: draw_decomposition(numbers)
    })
    return BiasVarianceReport(numbers, table, picture)


def _check(configs: Mapping[str, Config], runs: int, splits: str, split: str,
           interval: int | None) -> None:
    if runs < 2:
        raise AnalysisError('a variance over runs takes at least 2 of them, '
                            f'got {runs}')
    if interval is not None and interval < 1:
        raise AnalysisError('the interval between two decompositions must be '
                            f'at least 1 epoch, got {interval}')
    for got, known in ((splits, ('disjoint', 'bootstrap')),
                       (split, ('val', 'test'))):
        if got not in known:
            raise AnalysisError(f'expected {" or ".join(known)}, got {got!r}')
    sets = {}
    for name, cfg in configs.items():
        # The pipeline is that of val.
        for key in ('model', 'train_dataloader', 'val_dataloader',
                    f'{split}_dataloader', 'train_cfg'):
            if not cfg.get(key):
                raise AnalysisError(f'{name} has no {key}')
        if not cfg.train_cfg.get('max_epochs'):
            raise AnalysisError(f'{name} has no train_cfg.max_epochs')
        sets[name] = dict(cfg.train_dataloader.dataset, pipeline=None)
        first = next(iter(sets))
        if sets[name] != sets[first]:
            raise AnalysisError(
                f'{name} has another training set than {first}: their '
                'train_dataloader.dataset must be the same')


def _decompositions(trainings: Mapping[str, Sequence[Training]],
                    split: str) -> dict[tuple[str, int], Jackknife]:
    """By config and epoch, against the one config without a teacher."""
    direct = [group for group in trainings.values()
              if 'teacher' not in group[0].cfg.model]
    found = {}
    for name, group in trainings.items():
        for epoch in _epochs(group[0].cfg):
            compared = (
                len(direct) == 1 and group is not direct[0]
                and epoch in _epochs(direct[0][0].cfg))
            found[name, epoch] = decompose(
                [_predictions(run, split, epoch) for run in group],
                group[0].work_dir / f'{split}_labels.npy',
                [_predictions(run, split, epoch)
                 for run in direct[0]] if compared else None)
    return found


def _training(cfg: Config, folder: Path, run: int, parts: int | None,
              interval: int | None) -> Training:
    """One run of a config, on its own part of the data."""
    cfg = deepcopy(cfg)
    cfg.train_dataloader.dataset = dict(
        type='ResampledDataset', dataset=cfg.train_dataloader.dataset,
        run=run, parts=parts)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=run)
    cfg.default_hooks = cfg.get('default_hooks') or {}
    hooks = cfg.default_hooks
    kind = (hooks.get('checkpoint') or {}).get('type', 'CheckpointHook')
    epochs = cfg.train_cfg.max_epochs
    hooks['checkpoint'] = dict(
        type=kind, interval=interval or -(-epochs // _POINTS))
    return Training(cfg, folder / f'run{run}')


def _epochs(cfg: Config) -> list[int]:
    """Epochs of a run whose checkpoints are written; the last is one."""
    last = cfg.train_cfg.max_epochs
    step = cfg.default_hooks.checkpoint.interval
    return [*range(min(step, last), last, step), last]


def _predict(run: Training) -> None:
    """Keep what the student of each epoch predicts."""
    loaders = {split: analysis.evaluation_loader(run.cfg, split)
               for split in ('val', 'test')
               if run.cfg.get(f'{split}_dataloader')}
    for epoch in _epochs(run.cfg):
        path = str(run.work_dir / f'epoch_{epoch}.pth')
        student = analysis.student_network(
            run.cfg, read_checkpoint(path), path)
        for split, loader in loaders.items():
            keep_predictions(student, loader, _predictions(run, split, epoch),
                             run.work_dir / f'{split}_labels.npy')


def _predictions(run: Training, split: str, epoch: int) -> Path:
    return run.work_dir / f'{split}_epoch_{epoch}.npy'


def keep_predictions(network: nn.Module, batches: Iterable[Any], path: Path,
                     labels: Path) -> None:
    """Write what a network predicts on a split, as ``.npy``.

    ``path`` gets log-probabilities, float32 ``(N, C)``, ``labels`` the class
    indices, int64 ``(N,)``.
    """
    outputs, targets = zip(*analysis.logits([network], batches))
    logp = torch.cat([output for output, in outputs]).float().log_softmax(1)
    for file, values in ((labels, torch.cat(targets)), (path, logp)):
        buffer = io.BytesIO()
        np.save(buffer, values.numpy())
        write_atomically(file, buffer.getvalue())


def decompose(runs: Sequence[Path],
              labels: Path,
              reference: Sequence[Path] | None = None) -> Jackknife:
    """Decompose the mean error of a split's samples over runs.

    Args:
        runs: Files of :func:`keep_predictions`, of at least two.
        labels: Of all of them.
        reference: Of direct training, run by run on the same data.

    Returns:
        :data:`PARTS` in nats, float64 ``(6,)``, jackknifed over the runs.
        ``error`` is the sum of noise, bias and variance; the changes are
        against direct training, NaN without it, and the first of them is
        the paper's additional term of distillation.
    """
    logp = _read(runs)
    direct = _read(reference) if reference else None
    gt_labels = torch.from_numpy(np.load(labels))

    def statistic(kept: list[int]) -> Tensor:
        found = torch.stack([
            part.mean() for part in bias_variance(logp[kept], gt_labels)])
        changes = torch.full_like(found[2:4], float('nan'))
        if direct is not None:
            other = bias_variance(direct[kept], gt_labels)
            changes = found[2:4] - torch.stack(
                [other.bias.mean(), other.variance.mean()])
        return torch.cat([found[:4], changes])

    return jackknife(statistic, len(runs))


def decomposition_table(
        decompositions: Mapping[tuple[str, int], Jackknife]) -> pd.DataFrame:
    """The numbers of decompositions, a row for each part of each.

    Columns ``config``, ``epoch``, ``part`` (:data:`PARTS`), ``mean`` and
    ``standard_error`` over the runs in nats.
    """
    return pd.concat([
        pd.DataFrame(dict(config=config, epoch=epoch, part=PARTS,
                          **found._asdict()))
        for (config, epoch), found in decompositions.items()
    ], ignore_index=True)


def readable_decomposition(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`decomposition_table` to read: ``mean ± standard error``.

    A row for each config and epoch, a column for each part. Noise is left
    out where it is 0 throughout, as it is for class indices; what is not
    known is empty.
    """
    noise = table['mean'][table['part'] == 'noise'].any()
    parts = [part for part in PARTS if part != 'noise' or noise]
    texts = [
        '' if np.isnan(mean) else f'{mean:.4f} ± {error:.4f}'
        for mean, error in zip(table['mean'], table['standard_error'])
    ]
    index = ['config', 'epoch']
    wide = table.assign(text=texts).pivot(
        index=index, columns='part', values='text')
    # As they came, not by the alphabet.
    rows = pd.MultiIndex.from_frame(table[index].drop_duplicates())
    return wide.loc[rows, parts].rename_axis(columns=None).reset_index()


def draw_decomposition(table: pd.DataFrame) -> bytes:
    """Draw :func:`decomposition_table` over the epochs, as PNG."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 4), layout='constrained')
    for axes, part in zip(figure.subplots(1, len(_DRAWN)), _DRAWN):
        for config, points in table[table['part'] == part].groupby(
                'config', sort=False):
            axes.errorbar(points['epoch'], points['mean'],
                          points['standard_error'], label=plain(config),
                          marker='o', markersize=3, capsize=3)
        axes.set(title=part, ylabel='nats')
        whole_epochs(axes)
    axes.legend()
    return png(figure)


def _read(paths: Sequence[Path]) -> Tensor:
    return torch.from_numpy(np.stack([np.load(path) for path in paths]))
