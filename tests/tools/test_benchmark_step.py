"""The benchmark of steps runs, and its figures can be drawn."""
from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'tools' / 'benchmarks'
VARIANTS = ('same numerics', 'bfloat16', 'cached', 'student alone')


def test_measures_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    step, plot = map(importlib.import_module, ('step', 'plot'))
    monkeypatch.setitem(step.PAIRS, 'cifar', (32, 4, 10))
    out, picture = tmp_path / 'results' / 'step.csv', tmp_path / 'step.png'
    monkeypatch.setattr(sys, 'argv', [
        'step.py', '--pair', 'cifar', '--repeats', '2', '--device', 'cpu',
        '--out', str(out), '--variants', *VARIANTS
    ])
    step.main()
    with out.open(newline='') as file:
        rows = {row['variant']: row for row in csv.DictReader(file)}
    assert set(rows) == {'stock', *VARIANTS}
    stock = rows['stock']
    assert stock['speedup'] == '1.000'
    for row in rows.values():
        assert float(row['milliseconds']) > 0
        assert float(row['share_of_peak']) > 0
        # No teacher's forward pass where there is none.
        online = row['variant'] not in ('cached', 'student alone')
        ratio = float(row['teacher_ms']) / float(stock['teacher_ms'])
        assert (ratio > 0.1) == online
    assert float(rows['same numerics']['first_loss']) == pytest.approx(
        float(stock['first_loss']), rel=1e-6)
    # Half precision stores the cached logits.
    for close, tolerance in (('cached', 2e-3), ('bfloat16', 2e-2)):
        assert float(rows[close]['first_loss']) == pytest.approx(
            float(stock['first_loss']), rel=tolerance)

    monkeypatch.setattr(sys, 'argv', [
        'plot.py', '--results', str(out), '--out', str(picture)])
    plot.main()
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert capsys.readouterr().out.splitlines()[-1] == str(picture)


def test_nothing_to_draw_is_told(tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    plot = importlib.import_module('plot')
    monkeypatch.setattr(sys, 'argv', [
        'plot.py', '--results', str(tmp_path / 'none.csv')])
    with pytest.raises(SystemExit) as left:
        plot.main()
    assert left.value.code == 1
    assert 'none.csv' in capsys.readouterr().err
