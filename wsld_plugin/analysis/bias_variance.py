"""Bias and variance of students trained on different parts of the data."""
from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..checkpoints import write_atomically
from ..functional import Jackknife, bias_variance, jackknife
from .drawing import plain, png, whole_epochs
from .predictions import logits

# The mean prediction's own bias, whose change distillation explains.
PARTS = ('error', 'noise', 'bias', 'variance', 'bias change',
         'variance change')
_DRAWN = PARTS[:1] + PARTS[2:4]


def keep_predictions(network: nn.Module, batches: Iterable[Any], path: Path,
                     labels: Path) -> None:
    """Write what a network predicts on a split.

    Args:
        network: As :func:`wsld_plugin.analysis.student_network` builds it.
        batches: As :func:`wsld_plugin.analysis.evaluation_loader` does.
        path: Gets the log-probabilities, float32 ``(N, C)``, as ``.npy``.
        labels: Gets the class indices, int64 ``(N,)``, as ``.npy``.
    """
    outputs, targets = zip(*logits([network], batches))
    _write(labels, torch.cat(targets))
    logp = torch.cat([output for output, in outputs]).float().log_softmax(1)
    _write(path, logp)


def decompose(runs: Sequence[Path],
              labels: Path,
              reference: Sequence[Path] | None = None) -> Jackknife:
    """Decompose the mean error of a split's samples over runs.

    Args:
        runs: Predictions of at least two, of :func:`keep_predictions`.
        labels: Of all of them.
        reference: Predictions of direct training, run by run on the same
            data as ``runs``.

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
        pd.DataFrame({
            'config': config,
            'epoch': epoch,
            'part': PARTS,
            'mean': found.mean,
            'standard_error': found.standard_error
        }) for (config, epoch), found in decompositions.items()
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


def _write(path: Path, values: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    write_atomically(path, buffer.getvalue())
