"""Labelled and unlabelled pictures in one data set, at a given ratio."""
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from wsld_plugin.datasets import mixed_dataset

FEW = dict(type='DigitsDataset', split='val', indices=6,
           pipeline=[dict(type='mmpretrain.PackInputs')])
MANY = dict(FEW, indices=[*range(6, 26)])


def scan(item):
    return (item['inputs'].numpy().tobytes(),
            item['data_samples'].gt_label.item())


@pytest.mark.parametrize('labelled,unlabelled,ratio,sizes', [
    (FEW, MANY, 4, (6, 24)), (FEW, MANY, 0.25, (80, 20))])
def test_nothing_is_left_out_and_the_ratio_is_met(labelled, unlabelled,
                                                  ratio, sizes):
    mixed = DATASETS.build(dict(type='MixedDataset', labelled=labelled,
                                unlabelled=unlabelled, ratio=ratio))
    found = Counter(map(scan, pickle.loads(pickle.dumps(mixed))))
    for config, size, hidden in zip((labelled, unlabelled), sizes, (0, 1)):
        expected = {(pixels, -100 if hidden else label)
                    for pixels, label in map(scan, DATASETS.build(config))}
        counts = [found[one] for one in expected]
        assert sum(counts) == size and max(counts) - min(counts) <= 1
    assert len(mixed) == sum(sizes) == sum(found.values())


def test_no_copy_that_mmengine_remembers():
    # BaseDataset.get_subset keeps what it has copied by its address, so that
    # a data set to come may get another one for its pipeline.
    memo, = BaseDataset._copy_without_annotation.__defaults__
    if memo is None:
        pytest.skip('the fork keeps nothing')
    before = len(memo)
    for config in (dict(type='MixedDataset', labelled=FEW, unlabelled=MANY,
                        ratio=4),
                   dict(type='MixedDataset', labelled=FEW, unlabelled=MANY,
                        ratio=1),
                   dict(type='ResampledDataset', dataset=MANY, run=0)):
        DATASETS.build(config)
    assert len(memo) == before


def test_a_folder_without_labels(tmp_path):
    for name in ('one/a/1.png', 'one/b/2.png', 'two/3.png', 'two/x/4.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    common = dict(type='mmpretrain.CustomDataset', pipeline=[
        dict(type='LoadImageFromFile'), dict(type='mmpretrain.PackInputs')])
    mixed = mixed_dataset(
        dict(common, data_prefix=str(tmp_path / 'one')),
        dict(common, data_prefix=str(tmp_path / 'two'), with_label=False), 1)
    assert [scan(item)[1] for item in mixed] == [0, 1, -100, -100]
    assert mixed.metainfo['classes'] == ('a', 'b')


@pytest.mark.parametrize('change,error,match', [
    (dict(ratio=0), ValueError, 'ratio must be a number above 0, got 0'),
    (dict(ratio=float('inf')), ValueError, 'got inf'),
    (dict(unlabelled=dict(FEW, indices=0, serialize_data=False)), ValueError,
     'unlabelled must hold a sample'),
    (dict(labelled=dict(type='RepeatDataset', dataset=FEW, times=2)),
     TypeError, 'labelled must be.*BaseDataset, got a RepeatDataset')])
def test_bad_input_is_refused(change, error, match):
    with pytest.raises(error, match=match):
        mixed_dataset(**{**dict(labelled=FEW, unlabelled=MANY, ratio=1),
                         **change})
