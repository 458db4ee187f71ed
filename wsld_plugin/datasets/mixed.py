"""Pictures without labels beside those with."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.registry import DATASETS

from .resampled import build_whole

IGNORE_INDEX = -100
_SHUFFLE_SEED = 0


@DATASETS.register_module(name='MixedDataset')
def mixed_dataset(labelled: dict[str, Any], unlabelled: dict[str, Any],
                  ratio: float) -> ConcatDataset:
    """Join two data sets so that a share of the samples has no label.

    All samples of both are there once; of the one that is too small for the
    ratio, as many again as it takes, each equally often but for one. Shuffled
    by a sampler, a batch has the ratio on average.

    As ``dict(type='MixedDataset', labelled=..., unlabelled=..., ratio=4)`` in
    the place of a data set's config, with ``WSLDLoss(unlabelled='teacher')``.
    mmpretrain's cross-entropy adds up over the labelled samples, but divides
    by all: ``1 + ratio`` as its ``loss_weight`` makes up for that.

    Args:
        labelled: Config of a :class:`mmengine.dataset.BaseDataset`, whose
            meta information is that of the whole.
        unlabelled: Likewise, such as mmpretrain's ``CustomDataset`` with
            ``with_label=False``. Its samples get the label -100 before their
            pipeline, whatever label they had. Mixup and cutmix, which need
            every label, refuse it.
        ratio: Unlabelled samples for each labelled one, above 0.

    Raises:
        TypeError: If one of the two is no ``BaseDataset``, as a wrapper.
        ValueError: If a data set is empty, or ``ratio`` no positive number.
    """
    if isinstance(ratio, bool) or not 0 < ratio < math.inf:
        raise ValueError(f'ratio must be a number above 0, got {ratio!r}')
    parts = [build_whole(name, config) for name, config in (
        ('labelled', labelled), ('unlabelled', unlabelled))]
    for name, part in zip(('labelled', 'unlabelled'), parts):
        if not len(part):
            raise ValueError(f'{name} must hold a sample, got none')
    parts[1].pipeline.transforms.insert(0, without_label)
    with_label, without = map(len, parts)
    sizes = (max(with_label, round(without / ratio)),
             max(without, round(with_label * ratio)))
    return ConcatDataset(
        [_repeated(part, size) for part, size in zip(parts, sizes)],
        ignore_keys=[*{key for part in parts for key in part.metainfo}])


def without_label(results: dict[str, Any]) -> dict[str, Any]:
    """A transform that takes a sample's label away."""
    return {**results, 'gt_label': IGNORE_INDEX}


def _repeated(dataset: BaseDataset, size: int) -> BaseDataset:
    """The samples over and over until there are ``size``."""
    if size != len(dataset):
        # Shuffled, so that the last round is no single class.
        order = np.random.RandomState(_SHUFFLE_SEED).permutation(len(dataset))
        # In place: see resampled_dataset.
        dataset.get_subset_(np.resize(order, size).tolist())
    return dataset
