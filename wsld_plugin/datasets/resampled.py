"""Parts and resamples of a data set, to train several runs on."""
from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

_SHUFFLE_SEED = 0


def resampled_indices(size: int,
                      run: int,
                      parts: int | None = None) -> np.ndarray:
    """Positions of the samples that one of several runs learns from.

    Args:
        size: Number of samples of the whole set.
        run: Number of the run, from 0.
        parts: If given, the set is shuffled once and dealt out to so many
            runs, without overlap; sizes differ by one at most. By default
            the run draws ``size`` samples with replacement (bootstrap).

    Returns:
        Indices, int64: shape (size,) for a bootstrap, where about 37% of the
        samples are missing and others come repeatedly.

    Raises:
        ValueError: If ``run`` is negative, or not below ``parts``, or if
            there are fewer samples than parts.

    Example:
        >>> parts = [resampled_indices(5, run, 2) for run in range(2)]
        >>> np.sort(np.concatenate(parts)).tolist()
        [0, 1, 2, 3, 4]
    """
    if run < 0 or (parts is not None and run >= parts):
        raise ValueError('run must be in [0, '
                         f'{"..." if parts is None else parts}), got {run}')
    # numpy never changes the streams of RandomState.
    if parts is None:
        return np.random.RandomState(run).randint(size, size=size)
    if size < parts:
        raise ValueError(f'parts must be at most the number of samples, '
                         f'{size}, got {parts}')
    shuffled = np.random.RandomState(_SHUFFLE_SEED).permutation(size)
    return shuffled[run::parts]


@DATASETS.register_module(name='ResampledDataset')
def resampled_dataset(dataset: dict[str, Any],
                      run: int,
                      parts: int | None = None) -> BaseDataset:
    """Build the subset of a data set that one of several runs learns from.

    As ``dict(type='ResampledDataset', dataset=dict(...), run=0, parts=5)``
    in the place of the data set's own config.

    Args:
        dataset: Config of a :class:`mmengine.dataset.BaseDataset`.
        run: As for :func:`resampled_indices`.
        parts: As for :func:`resampled_indices`.

    Raises:
        TypeError: If ``dataset`` describes something else, as a wrapper.
    """
    whole = build_whole('dataset', dataset)
    indices = resampled_indices(len(whole), run, parts)
    # In place: mmengine 0.10's get_subset keeps its copies by their address,
    # and gives them to later data sets that come to live there.
    whole.get_subset_(indices.tolist())
    return whole


def build_whole(name: str, config: dict[str, Any]) -> BaseDataset:
    """Build a data set that can be cut; a TypeError if it is a wrapper."""
    whole = DATASETS.build(config)
    if not isinstance(whole, BaseDataset):
        raise TypeError(f'{name} must be the config of a BaseDataset, got a '
                        f'{type(whole).__name__}')
    whole.full_init()
    return whole
