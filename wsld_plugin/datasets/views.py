"""Augmentations that can be replayed: each picture's views have seeds."""
from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from mmengine.dataset import BaseDataset, DefaultSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch import Tensor

# To be raised when a seed would give other pictures than before.
SEED_RULE = 1


class SeededView(NamedTuple):
    """Which view of which sample a data sample is.

    ``row`` is ``view * samples + sample``; ``label`` is the class index,
    ``None`` where there is not exactly one; ``pixels`` is the CRC-32 of the
    packed inputs; ``fingerprint`` is that of the :class:`SeededViews`.
    """

    row: int
    label: Optional[int]
    pixels: int
    fingerprint: str


@DATASETS.register_module()
class SeededViews:
    """A dataset in which every sample has ``views`` fixed augmentations.

    Item ``view * samples + sample`` is what the wrapped dataset makes of the
    sample while the random number generators of Python, numpy and torch (its
    CPU's) start from a seed drawn from ``seed``, ``sample`` and ``view``.
    It is bit for bit the same in every pass, worker and process, and the
    generators are afterwards as they were before. Transforms with a
    generator of their own are beyond its reach; ``pixels`` tells.

    The data sample gets a :class:`SeededView` as ``seeded_view`` in its meta
    information. A sample for which the pipeline returns nothing is an error,
    where mmengine would take another sample in its place.

    Args:
        dataset: Config of an mmengine ``BaseDataset`` whose pipeline ends
            with ``PackInputs``.
        views: Views of each sample, at least 1.
        seed: At least 0. Another seed gives other views.

    Raises:
        TypeError: If ``dataset`` is no config or not of a ``BaseDataset``.
        ValueError: If ``views`` or ``seed`` is out of range.
    """

    def __init__(self,
                 dataset: Mapping[str, Any],
                 views: int,
                 seed: int = 0) -> None:
        if not isinstance(dataset, Mapping):
            raise TypeError('dataset must be a config, got '
                            f'{type(dataset).__name__}')
        for name, value, low in (('views', views, 1), ('seed', seed, 0)):
            if not isinstance(value, int) or value < low:
                raise ValueError(
                    f'{name} must be an integer of at least {low}, got '
                    f'{value!r}')
        # As it is now: transforms may be built in place.
        pipeline = json.dumps(
            dataset.get('pipeline', []), sort_keys=True, default=repr)
        built = DATASETS.build(dict(dataset))
        if not isinstance(built, BaseDataset):
            raise TypeError('dataset must be a BaseDataset of mmengine, got '
                            f'{type(built).__name__}')
        built.full_init()
        self.dataset = built
        self.samples = len(built)
        self.views = views
        self.seed = seed
        self.fingerprint = self._digest(pipeline)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Meta information of the wrapped dataset."""
        return self.dataset.metainfo

    def __len__(self) -> int:
        """Number of samples times number of views."""
        return self.samples * self.views

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The packed sample of a view, ``index`` in [0, samples * views).

        Raises:
            IndexError: If there is no such view.
            ValueError: If the pipeline returns no packed sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'index must be in [0, {len(self)}), got {index}')
        view, sample = divmod(index, self.samples)
        with _random_numbers_of(self.seed, sample, view):
            data: Any = self.dataset.prepare_data(sample)
        if not isinstance(data, dict) or not {'inputs', 'data_samples'
                                              } <= data.keys():
            raise ValueError(
                f'the pipeline returned no packed sample for view {view} of '
                f'sample {sample}: SeededViews takes no other in its place')
        labels = data['data_samples'].get('gt_label')
        single = labels is not None and labels.numel() == 1
        data['data_samples'].set_metainfo(
            dict(
                seeded_view=SeededView(index,
                                       int(labels) if single else None,
                                       _checksum(data['inputs']),
                                       self.fingerprint)))
        return data

    def _digest(self, pipeline: Any) -> str:
        """SHA-256 of all that decides what the views are."""
        digest = hashlib.sha256()
        rule = dict(
            rule=SEED_RULE,
            classes=self.metainfo.get('classes'),
            pipeline=json.loads(pipeline),
            samples=self.samples,
            views=self.views,
            seed=self.seed)
        digest.update(json.dumps(rule, sort_keys=True, default=str).encode())
        for sample in range(self.samples):
            info = self.dataset.get_data_info(sample)
            for key in sorted(info):
                if key != 'sample_idx':
                    digest.update(f'\n{key} '.encode() + _identity(info[key]))
        return digest.hexdigest()


@DATA_SAMPLERS.register_module()
class ViewSampler(DefaultSampler):
    """Each epoch one view of every sample of a :class:`SeededViews`.

    Epoch ``e`` has view ``e % views``, in the order in which mmengine's
    ``DefaultSampler`` would take the samples.

    Args:
        dataset: A :class:`SeededViews`.
        **kwargs: ``shuffle``, ``seed`` and ``round_up`` of
            ``DefaultSampler``.

    Raises:
        TypeError: If the dataset is another.
    """

    def __init__(self, dataset: SeededViews, **kwargs: Any) -> None:
        if not isinstance(dataset, SeededViews):
            raise TypeError('dataset must be a SeededViews, got '
                            f'{type(dataset).__name__}')
        super().__init__(range(dataset.samples), **kwargs)
        self.views = dataset.views

    def __iter__(self) -> Iterator[int]:
        """Iterate over the indices of the epoch's view."""
        first = self.epoch % self.views * len(self.dataset)
        return (first + sample for sample in super().__iter__())


@contextmanager
def _random_numbers_of(seed: int, sample: int, view: int) -> Iterator[None]:
    """Draw a view's random numbers, and none from the generators' own."""
    python, array = random.getstate(), np.random.get_state()
    low, high, third, fourth = map(
        int, np.random.SeedSequence([seed, sample, view]).generate_state(4))
    random.seed(low | high << 32)
    np.random.seed(third)
    try:
        with torch.random.fork_rng([]):
            # torch.manual_seed would also restart the generators of GPUs.
            torch.default_generator.manual_seed(fourth)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _checksum(inputs: Any) -> int:
    if not isinstance(inputs, Tensor):
        raise ValueError('inputs of a sample must be one tensor, got '
                         f'{type(inputs).__name__}')
    return zlib.crc32(inputs.contiguous().numpy().data)


def _identity(value: Any) -> bytes:
    """What stands for a value wherever the data set is stored."""
    if isinstance(value, np.ndarray):
        return f'{value.dtype}{value.shape}'.encode() + value.tobytes()
    if isinstance(value, str):
        # The folder of the class and the file, wherever the data set is.
        return '/'.join(PurePath(value).parts[-2:]).encode()
    return repr(value).encode()


