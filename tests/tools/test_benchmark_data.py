"""The benchmark of loading runs, and its figures of pixels are right."""
from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

BENCHMARKS = Path(__file__).parents[2] / 'tools' / 'benchmarks'


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, on smaller pictures and batches."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module('data')
    monkeypatch.setattr(module, 'SIZES', ((300, 200), (700, 560)))
    monkeypatch.setattr(module, 'BATCH', 2)
    return module


def test_measures_every_way(data: ModuleType, tmp_path: Path,
                            monkeypatch: pytest.MonkeyPatch,
                            capsys: pytest.CaptureFixture) -> None:
    for number, image in enumerate(load_sample_images().images):
        Image.fromarray(image).save(tmp_path / f'{number}.png')
    out = tmp_path / 'results' / 'data.csv'
    monkeypatch.setattr(sys, 'argv', [
        'data.py', '--source', str(tmp_path), '--pictures', '4', '--repeats',
        '2', '--workers', '1', '--out', str(out)
    ])
    data.main()
    assert capsys.readouterr().out.count('mmpretrain') == 2
    with out.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert all(
        float(row[field]) > 0 for row in rows
        for field in ('per_core', 'speedup', 'loader', 'kilobytes'))
    changed = {(row['size'], row['way']): float(row['crops_changed'])
               for row in rows}
    assert {size for size, _ in changed} == {'300x200', '700x560'}
    for (size, way), share in changed.items():
        if way in ('mmpretrain', 'default_collate', 'region'):
            assert share == 0
        elif way == 'min_sampling=1':
            # Only crops with twice 224 rows and columns.
            assert 0 < share < 1 if size == '700x560' else share == 0
        elif size == '700x560':
            assert share > changed[size, 'min_sampling=1']


def test_synthetic_files_are_as_large_as_photographs(data: ModuleType,
                                                     tmp_path: Path) -> None:
    path, = data.write_pictures(tmp_path, (500, 375), 1, None)
    assert 60e3 < path.stat().st_size < 150e3


def test_wrong_arguments_are_named(data: ModuleType, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        (['--source', str(tmp_path)], f'data.py: no pictures in {tmp_path}'),
        (['--repeats', '1'], 'data.py: --repeats must be at least 2')):
        monkeypatch.setattr(sys, 'argv', ['data.py', *arguments])
        with pytest.raises(SystemExit) as stopped:
            data.main()
        assert stopped.value.code == message
