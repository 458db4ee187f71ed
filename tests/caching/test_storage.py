"""The files of a cache: no row is taken for another, or for whole."""
from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored import confident, refused, store, write

from wsld_plugin.caching import TeacherCache
from wsld_plugin.caching.storage import locked, make_manifest, prepare_cache

LABELS = torch.tensor([0, 3, 2])
LOGITS = torch.eye(4)[:3] * 5


def test_top_k() -> None:

    def kept(*args: Any) -> Any:
        return make_manifest(*args, count=1)['top_k']

    assert (kept(256, None), kept(257, None)) == (None, 64)
    assert (kept(10, 8), kept(10, 9), kept(1000, 1000)) == (8, None, None)
    for classes, top_k, count in ((10, 0, 1), (1, None, 1), (10, None, 0)):
        with refused(f'got .*{classes} and {count}'):
            make_manifest(classes, top_k, count=count)


def test_copies_share_the_file(tmp_path: Path) -> None:
    cache = store(tmp_path, *confident(10))
    assert len(pickle.dumps(cache)) < 500
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (twin.rows([7, 3]) == cache.rows([7, 3])).all()


def test_every_changed_byte_of_a_row_is_seen(tmp_path: Path) -> None:
    cache = store(tmp_path, LOGITS, LABELS)
    path, size = tmp_path / 'rows.bin', cache.dtype.itemsize
    good = path.read_bytes()
    assert len(good) == 3 * size
    for position in range(len(good)):
        for bit in (1, 128):
            bad = bytearray(good)
            bad[position] ^= bit
            path.write_bytes(bad)
            row = position // size
            # By a cache that was opened before and after.
            for reader in (cache, TeacherCache(tmp_path)):
                with refused(rf'row {row} of .*rows\.bin.* is damaged'):
                    reader.rows(range(3))
            assert cache.missing().tolist() == [row]


def test_rows_that_are_whole_but_not_in_their_place(tmp_path: Path) -> None:
    cache = store(tmp_path / 'one', LOGITS, LABELS, seed=0)
    store(tmp_path / 'other', LOGITS, LABELS, seed=1)
    rows, others = (np.fromfile(tmp_path / name / 'rows.bin', 'u1').reshape(
        3, -1) for name in ('one', 'other'))
    for wrong in (rows[[1, 0, 2]], rows[[0, 0, 2]], 0 * rows, others):
        wrong.tofile(tmp_path / 'one' / 'rows.bin')
        with refused('is damaged or not there'):
            cache.rows(cache.missing()[:1])
    for row in (-1, 3):
        with refused(f'row {row} of .* which has 3'):
            cache.rows([row])


def test_every_changed_or_cut_manifest_is_refused(tmp_path: Path) -> None:
    store(tmp_path, LOGITS, LABELS, teacher=dict(depth=34), classes=['a'])
    path = tmp_path / 'manifest.json'
    good = path.read_bytes()
    for position in range(len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 1
        for content in (bad, good[:position]):
            path.write_bytes(content)
            with refused('manifest.json (cannot be read|was altered)'):
                TeacherCache(tmp_path)


@pytest.mark.parametrize('damage, left', [
    (lambda path: path.unlink(), 3),
    (lambda path: path.write_bytes(b''), 3),
    (lambda path: os.truncate(path, path.stat().st_size - 9), 1),
    (lambda path: os.truncate(path, path.stat().st_size + 9), 0),
])
def test_rows_of_another_size_are_not_finished(
        damage: Callable[[Path], Any], left: int, tmp_path: Path) -> None:
    cache = store(tmp_path, LOGITS, LABELS)
    damage(tmp_path / 'rows.bin')
    # Cut or gone while it is read, the same file is looked at.
    assert len(cache.missing()) <= left
    with refused(r'is not finished \(rows.bin has .* of 84 bytes\)'):
        TeacherCache(tmp_path)
    # What is whole is kept, and the rest is to be computed.
    assert len(prepare_cache(tmp_path, cache.manifest)) == left


def test_unfinished_cache_is_not_read(tmp_path: Path) -> None:
    with refused('there is no teacher cache in'):
        TeacherCache(tmp_path)
    manifest = make_manifest(4, None, count=3)
    assert prepare_cache(tmp_path, manifest).tolist() == [0, 1, 2]
    write(TeacherCache(tmp_path, manifest), [1], LOGITS[1:2], LABELS[1:2])
    with refused('is not finished'):
        TeacherCache(tmp_path)
    assert prepare_cache(tmp_path, manifest).tolist() == [0, 2]


def test_only_the_same_cache_is_continued(tmp_path: Path) -> None:
    manifest = make_manifest(
        10, None, count=9, seed=0, teacher=dict(a=1, b=(2, dict)))
    for _ in range(2):
        assert len(prepare_cache(tmp_path, manifest)) == 9
    for changed, said in ((dict(seed=1), 'with seed=0, .* now has 1'),
                          (dict(teacher=dict(a=2)), r'teacher\.a=1, .* has 2'),
                          (dict(count=5), 'count=9'),
                          (dict(top_k=3), 'top_k=None')):
        with refused(said):
            prepare_cache(tmp_path, dict(manifest, **changed))


def test_two_builders_at_once_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), refused('another process'), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def fork(target: Callable[[], None]) -> Any:
    process = multiprocessing.get_context('fork').Process(target=target)
    process.start()
    return process


def test_full_disk(tmp_path: Path) -> None:
    with refused('which needs 2020.*[0-9] MB'):
        prepare_cache(tmp_path, make_manifest(1000, 1000, count=10**13))
    assert list(tmp_path.iterdir()) == []
    manifest = make_manifest(4, None, count=3)
    prepare_cache(tmp_path, manifest)

    def fill() -> None:
        # As long as one row: what comes after finds no room.
        resource.setrlimit(resource.RLIMIT_FSIZE, (28, 28))
        with pytest.raises(OSError, match=r"'.*rows\.bin'"):
            write(TeacherCache(tmp_path, manifest), [0, 1, 2], LOGITS, LABELS)

    process = fork(fill)
    process.join()
    assert process.exitcode == 0
    assert prepare_cache(tmp_path, manifest).tolist() == [1, 2]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    logits, labels = LOGITS.repeat(40, 1), LABELS.repeat(40)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    manifest = store(whole, logits, labels).manifest

    def build() -> None:
        with locked(killed):
            for row in prepare_cache(killed, manifest).tolist():
                time.sleep(0.002)
                write(TeacherCache(killed, manifest), [row],
                      logits[row:row + 1], labels[row:row + 1])

    left, delay = [120], 0.005
    while left[-1]:
        process = fork(build)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with locked(killed):
            left.append(len(prepare_cache(killed, manifest)))
        delay *= 1.1
    assert left == sorted(left, reverse=True) and len(set(left)) > 2
    assert (whole / 'rows.bin').read_bytes() == (
        killed / 'rows.bin').read_bytes()
    assert len(TeacherCache(killed)) == 120
