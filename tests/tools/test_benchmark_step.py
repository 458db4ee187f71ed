"""The benchmark of steps runs, and its variants train the same."""
from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'tools' / 'benchmarks'
VARIANTS = ('same numerics', 'cached, bfloat16')


def test_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step = importlib.import_module('step')
    monkeypatch.setitem(step.PAIRS, 'cifar', (step.PAIRS['cifar'][0], 32, 4))
    out = tmp_path / 'step.csv'
    monkeypatch.setattr(sys, 'argv', [
        'step.py', '--pair', 'cifar', '--repeats', '2', '--device', 'cpu',
        '--csv', str(out), '--variants', *VARIANTS
    ])
    step.main()
    assert 'same numerics' in capsys.readouterr().out
    with out.open(newline='') as file:
        rows = {row['variant']: row for row in csv.DictReader(file)}
    assert set(rows) == {'stock', *VARIANTS}
    stock = rows['stock']
    assert stock['speedup'] == '1.000'
    assert all(float(row['milliseconds']) > 0 for row in rows.values())
    for same, tolerance in zip(VARIANTS, (1e-6, 2e-2)):
        assert float(rows[same]['first_loss']) == pytest.approx(
            float(stock['first_loss']), rel=tolerance)
