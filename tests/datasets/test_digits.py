"""The digits set: what is in it, how it is split, how it loads."""
from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from mmengine.registry import DATASETS

from wsld_plugin.datasets import DigitsDataset
from wsld_plugin.datasets.digits import SPLITS, split_indices


def sklearn_digits():
    from sklearn.datasets import load_digits
    return load_digits()


def test_splits_are_disjoint_complete_stratified_and_never_change():
    labels = sklearn_digits().target
    parts = [split_indices(labels, split) for split in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    for part, share in zip(parts, (0.5, 0.2, 0.3)):
        per_class = np.bincount(labels[part], minlength=10)
        assert np.abs(per_class - share * np.bincount(labels)).max() <= 1
    assert [part[:6].tolist() for part in parts] == [
        [536, 70, 851, 143, 613, 495],
        [682, 657, 1140, 1385, 324, 1741],
        [1739, 336, 1142, 867, 124, 358],
    ]
    # Any leading part is balanced.
    assert np.bincount(labels[parts[0][:200]]).tolist() == [20] * 10


@pytest.mark.parametrize('split', SPLITS)
def test_scans_are_those_of_sklearn(split):
    digits = sklearn_digits()
    lazy = DATASETS.build(
        dict(type='DigitsDataset', split=split, lazy_init=True))
    assert not lazy.data_list
    dataset = pickle.loads(pickle.dumps(lazy))
    dataset.full_init()
    assert dataset.metainfo['classes'] == tuple('0123456789')
    indices = split_indices(digits.target, split)
    assert len(dataset) == len(indices)
    for position in (0, len(dataset) - 1):
        sample = dataset[position]
        image = sample['img']
        assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
        assert (image == image[..., :1]).all()
        np.testing.assert_allclose(
            image[..., 0] / 255 * 16,
            digits.images[indices[position]],
            atol=0.04)
        assert sample['gt_label'] == digits.target[indices[position]]
        assert sample['img_shape'] == sample['ori_shape'] == (8, 8)
        # Changing a sample leaves the data set alone.
        image[:] = 0
        assert dataset[position]['img'].any()


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="train, val, test, got 'dev'"):
        DigitsDataset('dev', lazy_init=True)


def test_missing_sklearn_is_said_with_the_cause():
    code = ('import sys; sys.modules["sklearn"] = None\n'
            'from wsld_plugin.datasets import DigitsDataset\n'
            'DigitsDataset("val")')
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'pip install scikit-learn' in done.stderr
    assert 'sklearn.datasets' in done.stderr.splitlines()[-1]
