"""Error of students trained on different parts of the data, decomposed."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from mmengine.config import Config

from ..analysis import AnalysisError, evaluation_loader, student_network
from ..analysis.bias_variance import (
    decompose,
    decomposition_table,
    draw_decomposition,
    keep_predictions,
    readable_decomposition,
)
from ..analysis.tables import write_results
from ..checkpoints import read_checkpoint
from ..functional import Jackknife
from .trainings import Training, run_trainings

# Epochs at which bias and variance are measured, unless asked otherwise.
_POINTS = 6


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
        name: [
            _training(cfg, out / name, run, parts, interval)
            for run in range(runs)
        ]
        for name, cfg in named.items()
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
    direct = [
        group for group in trainings.values()
        if 'teacher' not in group[0].cfg.model
    ]
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
        type='ResampledDataset',
        dataset=cfg.train_dataloader.dataset,
        run=run,
        parts=parts)
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
    loaders = {
        split: evaluation_loader(run.cfg, split) for split in ('val', 'test')
        if run.cfg.get(f'{split}_dataloader')
    }
    for epoch in _epochs(run.cfg):
        path = str(run.work_dir / f'epoch_{epoch}.pth')
        student = student_network(run.cfg, read_checkpoint(path), path)
        for split, loader in loaders.items():
            keep_predictions(student, loader, _predictions(run, split, epoch),
                             run.work_dir / f'{split}_labels.npy')


def _predictions(run: Training, split: str, epoch: int) -> Path:
    return run.work_dir / f'{split}_epoch_{epoch}.npy'
