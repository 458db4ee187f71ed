"""Handwritten digits that come with scikit-learn: nothing to download."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..checkpoints import write_atomically

SPLITS = ('train', 'val', 'test')
# Shares of each class that end the train and the val split.
_ENDS = (0.5, 0.7)
_SHUFFLE_SEED = 0


def split_indices(gt_labels: np.ndarray, split: str) -> np.ndarray:
    """Positions of the samples of one split, ordered so that classes mix.

    Of each class 50% of the samples are for training, 20% for choosing
    hyper-parameters and 30% for reporting; which sample goes where is a
    shuffle with a fixed seed. Within a split the classes take turns, so any
    leading part of it is as balanced as its length allows.

    Args:
        gt_labels: Class indices of the whole set, shape (N,), integer.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Returns:
        Indices into ``gt_labels``, shape (M,), int64. The three splits are
        disjoint and cover all samples.

    Raises:
        ValueError: If ``split`` is none of the three names.
    """
    if split not in SPLITS:
        raise ValueError(
            f'split must be one of {", ".join(SPLITS)}, got {split!r}')
    # numpy never changes the streams of RandomState, those of its newer
    # generators it may.
    rng = np.random.RandomState(_SHUFFLE_SEED)
    turns: list[tuple[int, int, int]] = []
    for label in np.unique(gt_labels):
        members = rng.permutation(np.flatnonzero(gt_labels == label))
        ends = [round(len(members) * share) for share in _ENDS]
        chosen = np.split(members, ends)[SPLITS.index(split)]
        turns += [(turn, int(label), int(index))
                  for turn, index in enumerate(chosen)]
    return np.array([index for _, _, index in sorted(turns)], dtype=np.int64)


@DATASETS.register_module()
class DigitsDataset(BaseDataset):
    """1,797 scans of handwritten digits, 8x8 pixels in 17 shades of grey.

    Each sample is a dict with ``img`` (uint8 array of shape (8, 8, 3), three
    equal channels, strokes bright on black), ``img_shape`` and ``ori_shape``
    (both ``(8, 8)``) and ``gt_label`` (int), which mmpretrain's transforms
    take as they take a decoded file. The grey value 16 becomes 255.

    The splits hold 898 (train), 360 (val) and 539 (test) scans, see
    :func:`split_indices`. Choose hyper-parameters on ``val``.

    Args:
        split: ``'train'``, ``'val'`` or ``'test'``.
        pipeline: Transforms, as configs or callables.
        **kwargs: Further arguments of :class:`mmengine.dataset.BaseDataset`;
            ``indices=N`` keeps the first N scans, with balanced classes.

    Raises:
        ValueError: If ``split`` is none of the three names.
        ImportError: If scikit-learn cannot be imported.

    The scans are the test part of "Optical Recognition of Handwritten
    Digits", UCI Machine Learning Repository, as packed in scikit-learn's
    ``load_digits``.
    """

    METAINFO: ClassVar[dict] = {'classes': tuple('0123456789')}

    def __init__(self,
                 split: str,
                 pipeline: Sequence[Any] = (),
                 **kwargs: Any) -> None:
        self.split = split
        super().__init__(pipeline=list(pipeline), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Unpack the split's scans from scikit-learn's wheel."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                'DigitsDataset reads the scans that come with scikit-learn, '
                f'which cannot be imported ({error}): '
                'pip install scikit-learn') from error
        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        height, width = grey.shape[1:]
        return [
            dict(
                img=np.repeat(grey[index, :, :, None], 3, axis=2),
                img_shape=(height, width),
                ori_shape=(height, width),
                gt_label=int(digits.target[index]))
            for index in split_indices(digits.target, self.split)
        ]


def write_digits(folder: Path) -> None:
    """Write the scans as ``{train,val,test}/DIGIT/NUMBER.png``, 8 x 8.

    Files that are there already stay.
    """
    for split in SPLITS:
        for number, scan in enumerate(DigitsDataset(split)):
            path = folder / split / str(scan['gt_label']) / f'{number}.png'
            if not path.exists():
                write_atomically(
                    path, cv2.imencode('.png', scan['img'])[1].tobytes())
