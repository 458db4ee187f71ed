"""Means and paired differences, from scalars written by hand."""
from __future__ import annotations

import math
from pathlib import Path

import pytest

from wsld_plugin.analysis import (
    Experiment,
    History,
    TrainingRun,
    draw_experiments,
    experiment_rows,
    paired_difference,
    readable_experiments,
)


def run(seed: int, *accuracies: float) -> TrainingRun:
    validations = {
        epoch: {
            'accuracy/top1': accuracy
        }
        for epoch, accuracy in enumerate(accuracies, 1)
    }
    return TrainingRun(
        Path(f'seed-{seed}'), History({}, validations), seed, False)


def example() -> dict[str, Experiment]:
    return {
        'ce':
        Experiment({
            0: run(0, 60, 50),
            1: run(1, 40, 54),
            2: run(2, 10, 52)
        }, 3, {
            0: 40.0,
            1: 41.0
        }, [60, 120, 180]),
        # Seeds in another order, and one that ce does not have.
        'wsld':
        Experiment({
            2: run(2, 60, 55),
            0: run(0, 40, 51),
            1: run(1, 10, 56),
            7: run(7, 10, 90)
        }, 5, {}, [60] * 4, (72.04, 'authors')),
    }


def test_rows() -> None:
    ce, wsld = experiment_rows(example(), 'accuracy/top1', {
        'wsld': ['ce', 'kd'],
        'ce': []
    })
    assert (ce['last mean'], ce['last std']) == (52, 2)
    # 60, 54, 52: each run's own best epoch.
    assert ce['best mean'] == pytest.approx(166 / 3)
    assert ce['best std'] == pytest.approx(math.sqrt(52 / 3))
    assert (ce['test runs'], ce['test mean']) == (2, 40.5)
    assert ce['test std'] == pytest.approx(math.sqrt(0.5))
    assert ce['seconds a run'] == 120
    assert (wsld['runs'], wsld['planned']) == (4, 5)
    # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)) with 2 degrees of freedom,
    # for which P(|T| > t) = 1 - t / sqrt(2 + t^2).
    t = 2 * math.sqrt(3)
    assert wsld['last - ce mean'] == 2
    assert wsld['last - ce std'] == 1
    assert wsld['last - ce n'] == 3
    assert wsld['last - ce p'] == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert wsld['test - ce n'] == 0 and math.isnan(wsld['test - ce mean'])
    assert list(ce) == list(wsld)


def test_to_read() -> None:
    experiments = example()
    rows = experiment_rows(experiments, 'accuracy/top1', {'wsld': ['ce']})
    ce, wsld = readable_experiments(rows)
    assert ce['test'] == '40.50 ± 0.71' and wsld['test'] == ''
    assert ce['published*'] == ''
    assert wsld['published*'] == '72.04* (authors)'
    assert wsld['seeds'] == '4 of 5'
    assert wsld['time a run'] == '1.0 min'
    # Not mixed with differences of the validation.
    assert wsld['test - ce'] == ''
    experiments['ce'] = experiments['ce']._replace(test={})
    rows = experiment_rows(experiments, 'accuracy/top1', {'wsld': ['ce']})
    ce, wsld = readable_experiments(rows)
    assert 'test' not in wsld
    assert wsld['last - ce'] == '+2.00 ± 1.00 (p = 0.074, n = 3)'
    assert draw_experiments(experiments, 'accuracy/top1').startswith(
        b'\x89PNG')


def test_no_test_without_spread() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    one = paired_difference({0: 3.0, 1: 9.0}, {0: 1.0})
    assert one is not None
    assert str(one) == '+2.00 (n = 1)'
    # 0.3 - 0.1 and 0.5 - 0.3 differ by rounding only.
    same = paired_difference({0: 0.3, 1: 0.5}, {0: 0.1, 1: 0.3})
    assert same is not None
    assert same.std == 0 and math.isnan(same.p)
