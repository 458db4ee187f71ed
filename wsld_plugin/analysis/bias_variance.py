"""Bias and variance of students trained on different parts of the data."""
from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import write_atomically
from ..functional import Jackknife, bias_variance, jackknife
from .drawing import png, whole_epochs
from .predictions import logits

# The mean prediction's own bias, whose change distillation explains.
PARTS = ('error', 'noise', 'bias', 'variance', 'bias change',
         'variance change')
_DRAWN = PARTS[:1] + PARTS[2:4]
# Samples that are decomposed at once.
_CHUNK = 4096


def keep_predictions(network: nn.Module, batches: Iterable[Any], path: Path,
                     labels: Path) -> None:
    """Write what a network predicts on a split.

    Args:
        network: As :func:`wsld_plugin.analysis.student_network` builds it.
        batches: A loader, or something that counts as it passes them on.
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

    Files are read part by part, so no run has to fit into memory.

    Args:
        runs: Predictions of each run, at least two, as
            :func:`keep_predictions` writes them.
        labels: Of all of them.
        reference: Predictions of direct training, run by run on the same
            data as ``runs``.

    Returns:
        :data:`PARTS` in nats, float64 ``(6,)``, jackknifed over the runs.
        ``error`` is the sum of noise, bias and variance; the changes are
        against direct training, NaN without reference, and the first of
        them is the paper's additional term of distillation.
    """
    arrays = [np.load(path, mmap_mode='r') for path in runs]
    direct = [np.load(path, mmap_mode='r') for path in reference or ()]
    targets = torch.from_numpy(np.load(labels))

    def statistic(kept: list[int]) -> Tensor:
        total = torch.zeros(len(PARTS), dtype=torch.float64)
        for first in range(0, len(targets), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            total += _parts(
                _stack(arrays, kept, chunk), targets[chunk],
                _stack(direct, kept, chunk) if direct else None)
        return total / len(targets)

    return jackknife(statistic, len(arrays))


def decomposition_rows(
        decompositions: Mapping[tuple[str, int], Jackknife],
        runs: int) -> list[dict[str, Any]]:
    """A row of numbers for each config and epoch.

    Args:
        decompositions: By config and epoch.
        runs: How many there are.

    Returns:
        Rows for :func:`wsld_plugin.analysis.csv_table`, in nats, each value
        followed by its standard error over the runs.
    """
    rows = []
    for (config, epoch), (means, errors) in decompositions.items():
        row: dict[str, Any] = {
            'config': config,
            'epoch': epoch,
            'runs': runs
        }
        for part, mean, error in zip(PARTS, means.tolist(), errors.tolist()):
            row[part] = mean
            row[f'{part} error'] = error
        rows.append(row)
    return rows


def readable_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """:func:`decomposition_rows` to read: ``mean ± standard error``.

    Noise is left out where it is 0 throughout, as it is for class indices.
    """
    noise = any(row['noise'] for row in rows)
    return [{
        'config': row['config'],
        'epoch': str(row['epoch']),
        **{
            part: '' if np.isnan(row[part]) else
            f'{row[part]:.4f} ± {row[f"{part} error"]:.4f}'
            for part in PARTS if part != 'noise' or noise
        }
    } for row in rows]


def draw_decomposition(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw error, bias and variance over the epochs, as PNG.

    Args:
        rows: Of :func:`decomposition_rows`.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 4), layout='constrained')
    configs = list(dict.fromkeys(row['config'] for row in rows))
    for axes, part in zip(figure.subplots(1, len(_DRAWN)), _DRAWN):
        for config in configs:
            points = [row for row in rows if row['config'] == config]
            axes.errorbar([row['epoch'] for row in points],
                          [row[part] for row in points],
                          [row[f'{part} error'] for row in points],
                          label=config,
                          marker='o',
                          markersize=3,
                          capsize=3)
        axes.set(title=part, ylabel='nats')
        whole_epochs(axes)
    axes.legend()
    return png(figure)


def _parts(logp: Tensor, gt_labels: Tensor,
           direct: Tensor | None) -> Tensor:
    """Sums of :data:`PARTS` over samples."""
    error, noise, bias, variance, _ = (
        part.sum() for part in bias_variance(logp, gt_labels))
    changes = [torch.full_like(error, float('nan'))] * 2
    if direct is not None:
        other = bias_variance(direct, gt_labels)
        changes = [bias - other.bias.sum(), variance - other.variance.sum()]
    return torch.stack([error, noise, bias, variance, *changes])


def _stack(arrays: Sequence[np.ndarray], kept: Sequence[int],
           chunk: slice) -> Tensor:
    return torch.from_numpy(np.stack([arrays[i][chunk] for i in kept]))


def _write(path: Path, values: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    write_atomically(path, buffer.getvalue())
