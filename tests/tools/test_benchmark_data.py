"""The benchmark of loading runs, and its figures of pixels are right."""
from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images


def test_measures_every_way(start_tool: Callable[..., subprocess.Popen],
                            tmp_path: Path) -> None:
    source = tmp_path / 'photographs'
    source.mkdir()
    for number, image in enumerate(load_sample_images().images):
        Image.fromarray(image).save(source / f'{number}.png')
    out = tmp_path / 'results' / 'data.csv'
    tool = start_tool('benchmarks/data.py', '--source', source, '--pictures',
                      2, '--repeats', 2, '--workers', 1, '--out', out)
    printed, _ = tool.communicate()
    assert tool.returncode == 0, printed
    with out.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert {row['size'] for row in rows} == {'500x375', '1600x1200'}
    changed = {(row['size'], row['way']): float(row['crops_changed'])
               for row in rows}
    assert all(
        float(row[field]) > 0 for row in rows
        for field in ('per_core', 'speedup', 'loader', 'kilobytes'))
    for size in ('500x375', '1600x1200'):
        for way in ('mmpretrain', 'default_collate', 'region'):
            assert changed.get((size, way), 0) == 0
    # No crop of 375 rows has twice 224; most of 1200 do.
    assert changed['500x375', 'min_sampling=1'] == 0
    assert changed['500x375', 'min_sampling=0.5'] > 0
    assert changed['1600x1200', 'min_sampling=1'] > 0.5


def test_a_folder_without_pictures_is_named(
        start_tool: Callable[..., subprocess.Popen], tmp_path: Path) -> None:
    tool = start_tool('benchmarks/data.py', '--source', tmp_path)
    printed, _ = tool.communicate()
    assert tool.returncode == 1
    assert printed.splitlines()[-1] == f'data.py: no pictures in {tmp_path}'
