"""The digits: what is in them, how they are split, parted and drawn."""
import pickle
import sys

import numpy as np
import pytest
from mmengine.registry import DATASETS
from sklearn.datasets import load_digits

from wsld_plugin.datasets import DigitsDataset, resampled_indices
from wsld_plugin.datasets.digits import SPLITS, split_indices

DIGITS = dict(type='DigitsDataset', split='val', indices=41)


def test_splits_are_disjoint_complete_stratified_and_never_change():
    labels = load_digits().target
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
    digits = load_digits()
    lazy = DigitsDataset(split, lazy_init=True)
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
        grey = image[..., 0] / 255 * 16
        assert np.abs(grey - digits.images[indices[position]]).max() < 0.04
        assert sample['gt_label'] == digits.target[indices[position]]
        assert sample['img_shape'] == sample['ori_shape'] == (8, 8)
        # Changing a sample leaves the data set alone.
        image[:] = 0
        assert dataset[position]['img'].any()


def test_missing_sklearn_is_said_with_the_cause(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match=r'\.datasets.*install scikit-l'):
        DigitsDataset('val')


def scans(**config):
    dataset = DATASETS.build(config)
    return [dataset[i]['img'].tobytes() for i in range(len(dataset))]


def resampled(**config):
    return scans(type='ResampledDataset', **dict(dataset=DIGITS) | config)


def test_parts_share_nothing_and_leave_nothing():
    whole = scans(**DIGITS)
    parts = [resampled(run=run, parts=3) for run in range(3)]
    assert sorted(map(len, parts)) == [13, 14, 14]
    assert sorted(scan for part in parts for scan in part) == sorted(whole)
    # Shuffled: the classes of the digits take turns.
    assert parts[0] != whole[:14] and parts[0] != whole[::3]


def test_runs_draw_whole_samples_differently_and_always_the_same():
    whole, drawn = scans(**DIGITS), resampled_indices(41, 1)
    assert resampled(run=1) == [whole[index] for index in drawn]
    assert (resampled_indices(50, 0) != resampled_indices(50, 1)).any()
    assert (resampled_indices(50, 3) == resampled_indices(50, 3)).all()
    # A share of 1 - 1/e of the samples is drawn at least once.
    shares = [len(np.unique(resampled_indices(1000, r))) for r in range(20)]
    assert np.mean(shares) == pytest.approx(632, abs=10)


@pytest.mark.parametrize('config, error, said', [
    (dict(dataset=DIGITS | dict(split='dev'), run=0), ValueError,
     "split must be one of train, val, test, got 'dev'"),
    (dict(run=-1), ValueError, 'run must be'),
    (dict(run=2, parts=2), ValueError, 'run must be'),
    (dict(run=0, parts=42), ValueError, 'parts must be'),
    (dict(run=0, dataset=dict(type='RepeatDataset', times=2, dataset=DIGITS)),
     TypeError, 'RepeatDataset'),
])
def test_mistakes(config, error, said):
    with pytest.raises(error, match=said):
        resampled(**config)
