"""The digits set: what is in it, how it is split, how it loads."""
from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader

from wsld_plugin.datasets import DigitsDataset
from wsld_plugin.datasets.digits import SPLITS, split_indices


def sklearn_digits():
    from sklearn.datasets import load_digits
    return load_digits()


def test_splits_are_disjoint_complete_and_stratified():
    labels = sklearn_digits().target
    parts = [split_indices(labels, split) for split in SPLITS]
    assert sorted(np.concatenate(parts)) == list(range(1797))
    for part, share in zip(parts, (0.5, 0.2, 0.3)):
        per_class = np.bincount(labels[part], minlength=10)
        assert np.abs(per_class - share * np.bincount(labels)).max() <= 1


def test_splits_never_change():
    labels = sklearn_digits().target
    first = {s: split_indices(labels, s)[:6].tolist() for s in SPLITS}
    assert first == {
        'train': [536, 70, 851, 143, 613, 495],
        'val': [682, 657, 1140, 1385, 324, 1741],
        'test': [1739, 336, 1142, 867, 124, 358],
    }


def test_leading_part_is_balanced():
    dataset = DigitsDataset('train', indices=200)
    labels = [dataset.get_data_info(i)['gt_label'] for i in range(200)]
    assert np.bincount(labels).tolist() == [20] * 10


@pytest.mark.parametrize('split', SPLITS)
def test_scans_are_those_of_sklearn(split):
    digits = sklearn_digits()
    dataset = DATASETS.build(dict(type='DigitsDataset', split=split))
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


def test_changing_a_sample_leaves_the_dataset_alone():
    dataset = DigitsDataset('val')
    dataset[0]['img'][:] = 0
    assert dataset[0]['img'].any()


def test_lazy_and_picklable():
    dataset = DigitsDataset('val', lazy_init=True)
    assert not dataset.data_list
    copy = pickle.loads(pickle.dumps(dataset))
    copy.full_init()
    assert len(copy) == 360
    assert copy.metainfo['classes'] == tuple('0123456789')


def test_mmpretrain_pipeline_in_workers():
    from mmpretrain.utils import register_all_modules
    register_all_modules()
    dataset = DATASETS.build(
        dict(
            type='DigitsDataset',
            split='val',
            pipeline=[
                dict(type='mmpretrain.Resize', scale=32),
                dict(type='mmpretrain.PackInputs')
            ]))
    loader = DataLoader(
        dataset, batch_size=180, num_workers=2, collate_fn=list)
    samples = [sample for batch in loader for sample in batch]
    assert len(samples) == 360
    assert samples[0]['inputs'].shape == (3, 32, 32)
    labels = [int(sample['data_samples'].gt_label) for sample in samples]
    assert labels[:20] == list(range(10)) * 2
    assert samples[0]['data_samples'].ori_shape == (8, 8)


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="train, val, test, got 'dev'"):
        DigitsDataset('dev', lazy_init=True)


def test_missing_sklearn_is_said_with_the_cause():
    code = (
        'import sys; sys.modules["sklearn"] = None\n'
        'from wsld_plugin.datasets import DigitsDataset\n'
        'assert "sklearn.datasets" not in sys.modules\n'
        'DigitsDataset("val")')
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'pip install scikit-learn' in done.stderr
    assert 'sklearn.datasets' in done.stderr.splitlines()[-1]
