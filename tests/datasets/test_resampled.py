"""Parts and bootstraps of a data set."""
from __future__ import annotations

import numpy as np
import pytest
from mmengine.registry import DATASETS

from wsld_plugin.datasets import resampled_indices

DIGITS = dict(type='DigitsDataset', split='val', indices=41)


def scans(dataset) -> list[bytes]:
    return [dataset[i]['img'].tobytes() for i in range(len(dataset))]


def test_parts_share_nothing_and_leave_nothing() -> None:
    whole = scans(DATASETS.build(DIGITS))
    parts = [
        scans(
            DATASETS.build(
                dict(type='ResampledDataset', dataset=DIGITS, run=r,
                     parts=3))) for r in range(3)
    ]
    assert sorted(map(len, parts)) == [13, 14, 14]
    dealt = [scan for part in parts for scan in part]
    assert sorted(dealt) == sorted(whole)
    # Shuffled: the classes of the digits take turns.
    assert parts[0] != whole[:14] and parts[0] != whole[::3]


def test_bootstrap_repeats_whole_samples() -> None:
    dataset = DATASETS.build(
        dict(type='ResampledDataset', dataset=DIGITS, run=1))
    whole = DATASETS.build(DIGITS)
    drawn = resampled_indices(41, 1)
    assert len(dataset) == 41
    assert 15 < len(np.unique(drawn)) < 35
    for i, position in enumerate(drawn):
        assert dataset[i]['gt_label'] == whole[int(position)]['gt_label']
        assert (dataset[i]['img'] == whole[int(position)]['img']).all()


def test_runs_draw_differently_and_always_the_same() -> None:
    assert (resampled_indices(50, 0) != resampled_indices(50, 1)).any()
    assert (resampled_indices(50, 3) == resampled_indices(50, 3)).all()
    # A share of 1 - 1/e of the samples is drawn at least once.
    shares = [len(np.unique(resampled_indices(1000, r))) for r in range(20)]
    assert np.mean(shares) == pytest.approx(632, abs=10)


@pytest.mark.parametrize('run, parts', [(-1, None), (2, 2), (0, 42)])
def test_impossible_parts_are_refused(run: int, parts: int | None) -> None:
    with pytest.raises(ValueError, match='must be'):
        DATASETS.build(
            dict(type='ResampledDataset', dataset=DIGITS, run=run,
                 parts=parts))


def test_wrappers_are_refused() -> None:
    wrapped = dict(type='RepeatDataset', times=2, dataset=DIGITS)
    with pytest.raises(TypeError, match='RepeatDataset'):
        DATASETS.build(dict(type='ResampledDataset', dataset=wrapped, run=0))
