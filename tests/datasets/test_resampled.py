"""Parts and bootstraps of a data set."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mmengine.registry import DATASETS

from wsld_plugin.datasets import resampled_indices

DIGITS = dict(type='DigitsDataset', split='val', indices=41)


def scans(**config: Any) -> list[bytes]:
    dataset = DATASETS.build(config)
    return [dataset[i]['img'].tobytes() for i in range(len(dataset))]


def resampled(**config: Any) -> list[bytes]:
    return scans(type='ResampledDataset', **dict(dataset=DIGITS) | config)


def test_parts_share_nothing_and_leave_nothing() -> None:
    whole = scans(**DIGITS)
    parts = [resampled(run=run, parts=3) for run in range(3)]
    assert sorted(map(len, parts)) == [13, 14, 14]
    assert sorted(scan for part in parts for scan in part) == sorted(whole)
    # Shuffled: the classes of the digits take turns.
    assert parts[0] != whole[:14] and parts[0] != whole[::3]


def test_runs_draw_whole_samples_differently_and_always_the_same() -> None:
    whole, drawn = scans(**DIGITS), resampled_indices(41, 1)
    assert resampled(run=1) == [whole[index] for index in drawn]
    assert (resampled_indices(50, 0) != resampled_indices(50, 1)).any()
    assert (resampled_indices(50, 3) == resampled_indices(50, 3)).all()
    # A share of 1 - 1/e of the samples is drawn at least once.
    shares = [len(np.unique(resampled_indices(1000, r))) for r in range(20)]
    assert np.mean(shares) == pytest.approx(632, abs=10)


@pytest.mark.parametrize('config, error, said', [
    (dict(run=-1), ValueError, 'run must be'),
    (dict(run=2, parts=2), ValueError, 'run must be'),
    (dict(run=0, parts=42), ValueError, 'parts must be'),
    (dict(run=0, dataset=dict(type='RepeatDataset', times=2, dataset=DIGITS)),
     TypeError, 'RepeatDataset'),
])
def test_mistakes(config: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        resampled(**config)
