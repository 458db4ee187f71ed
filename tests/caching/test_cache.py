"""Caches: how exactly rows keep answers, and that none is mistaken."""
import copy
import multiprocessing
import os
import pickle
import resource
import signal
import time

import numpy as np
import pytest
import torch
from stored import confident, refused, store, write
from torch.utils._python_dispatch import TorchDispatchMode

from wsld_plugin.caching import TeacherCache
from wsld_plugin.caching.record import compare, decode, encode, unpack
from wsld_plugin.caching.storage import locked, make_manifest, prepare_cache
from wsld_plugin.functional import log_cross_entropy, wsld_weight

LABELS = torch.tensor([0, 3, 2])
LOGITS = torch.eye(4)[:3] * 5


def again(cache):
    rows = cache.rows(range(len(cache)))
    return decode(unpack(rows, torch.device('cpu')), cache.num_classes)


@pytest.mark.parametrize('classes, top_k', [
    (2, None), (10, None), (1000, 20), (300, 1), (40000, 3)])
def test_cross_entropy_and_weight_are_the_teachers(classes, top_k, tmp_path):
    logits, labels = confident(classes)
    rebuilt = again(store(tmp_path, logits, labels, top_k))
    assert rebuilt.dtype == torch.float32 and rebuilt.isfinite().all()
    exact = log_cross_entropy(logits, labels)
    # Half a unit in the last place of 60 is 2e-6.
    assert (log_cross_entropy(rebuilt, labels) - exact).abs().max() < 8e-6
    # A student as good as the teacher, where an error shows most.
    weights = wsld_weight(logits, rebuilt, labels)
    assert (weights - wsld_weight(logits, logits, labels)).abs().max() < 3e-6
    assert (weights - (1 - np.exp(-1)))[exact.abs() < 16].abs().max() < 1e-6


@pytest.mark.parametrize('dtype', [
    torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_is_widened_first(dtype):
    logits, labels = confident(10)
    logits = logits[40:80].to(dtype)
    made, wide = (encode(z, labels[40:80], None)
                  for z in (logits, logits.float()))
    assert (made['log_ce'] - wide['log_ce']).abs().max() < 1e-5
    assert torch.equal(made['logits'], wide['logits'])


def test_extreme_logits_stay_finite():
    labels = torch.tensor([0, 0, 1, 0, 1])
    logits = torch.tensor([[200., 0., 1.], [90., 0., 1.], [800., 0., 0.],
                           [0., 1e6, -1e6], [7e4, -7e4, 0.]])
    for fields in (encode(z, labels, None) for z in (logits, logits + 1e3)):
        rebuilt = decode(fields, 3)
        assert rebuilt.isfinite().all()
        torch.testing.assert_close(*(
            log_cross_entropy(z, labels) for z in (rebuilt, logits)),
            rtol=1e-5, atol=0)
        # Beyond float16's 65504 a class has no share at any temperature.
        assert fields['logits'][3].tolist()[2] == -65504


def test_other_logits_are_rounded_only(tmp_path):
    logits, labels = confident(10)
    rebuilt = again(store(tmp_path, logits, labels))
    true = labels.unsqueeze(1)
    rows = [z.scatter(1, true, float('-inf')) for z in (logits, rebuilt)]
    ours, theirs = (z - z.max(1, keepdim=True).values for z in rows)
    mask = torch.isfinite(ours)
    gap = (ours - theirs)[mask].abs()
    assert (gap <= ours[mask].abs() * 2**-11 + 1e-5).all()
    assert gap.max() > 0
    assert compare(rebuilt, logits, labels, None)[1]
    gap, alike = compare(rebuilt, logits * 1.01, labels, None)
    assert gap > 0.01 and not alike
    # Too far for the weight, whatever the other logits are.
    logits.scatter_add_(1, true, torch.full((121, 1), 2e-3))
    assert not compare(rebuilt, logits, labels, None)[1]


def test_top_k_keeps_the_mass_of_the_rest(tmp_path):
    logits, labels = confident(1000)
    cache = store(tmp_path, logits, labels, 20)
    assert cache.dtype.itemsize == 6 * 4 + 20 * 4
    rebuilt = again(cache)
    assert compare(rebuilt, logits, labels, 20)[1]
    probs, ours = (z.double().softmax(1) for z in (logits, rebuilt))
    kept = probs.scatter(1, labels.unsqueeze(1), 2).topk(21).indices
    mass, same = (1 - p.gather(1, kept).sum(1) for p in (probs, ours))
    torch.testing.assert_close(same, mass, rtol=2e-2, atol=1e-9)
    torch.testing.assert_close(
        ours.gather(1, kept), probs.gather(1, kept), rtol=5e-3, atol=1e-9)
    # Each of the rest alike.
    rest = ours.scatter(1, kept, 2).sort(1).values[:, :-21]
    assert (rest[:, -1] - rest[:, 0]).max() < 1e-9


@pytest.mark.parametrize('top_k', [None, 3])
def test_rows_go_to_the_device_in_one_copy(top_k, tmp_path):
    copies = []

    class Copies(TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            if 'copy' in str(func) and args[0].device != out.device:
                copies.append(out.dtype)
            return out

    rows = store(tmp_path, *confident(10), top_k).rows([5, 6])
    with Copies():
        assert decode(unpack(rows, torch.device('meta')), 10).is_meta
    assert copies == [torch.uint8]


def test_top_k():
    for classes, top_k, kept in ((256, None, None), (257, None, 64),
                                 (10, 8, 8), (10, 9, None), (9, 99, None)):
        assert make_manifest(classes, top_k, count=1)['top_k'] == kept
    for classes, top_k, count in ((10, 0, 1), (1, None, 1), (10, None, 0)):
        with refused(f'got .*{classes} and {count}'):
            make_manifest(classes, top_k, count=count)


def test_copies_share_the_file(tmp_path):
    cache = store(tmp_path, *confident(10))
    assert len(pickle.dumps(cache)) < 500
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert (twin.rows([7, 3]) == cache.rows([7, 3])).all()


def test_every_changed_byte_of_a_row_is_seen(tmp_path):
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


def test_rows_that_are_whole_but_not_in_their_place(tmp_path):
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


def test_every_changed_or_cut_manifest_is_refused(tmp_path):
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
def test_rows_of_another_size_are_not_finished(damage, left, tmp_path):
    cache = store(tmp_path, LOGITS, LABELS)
    damage(tmp_path / 'rows.bin')
    # Cut or gone while it is read, the same file is looked at.
    assert len(cache.missing()) <= left
    with refused(r'is not finished \(rows.bin has .* of 84 bytes\)'):
        TeacherCache(tmp_path)
    # What is whole is kept, and the rest is to be computed.
    assert len(prepare_cache(tmp_path, cache.manifest)) == left


def fork(target):
    process = multiprocessing.get_context('fork').Process(target=target)
    process.start()
    return process


def test_full_disk(tmp_path):
    with refused('which needs 2020.*[0-9] MB'):
        prepare_cache(tmp_path, make_manifest(1000, 1000, count=10**13))
    assert list(tmp_path.iterdir()) == []
    manifest = make_manifest(4, None, count=3)
    prepare_cache(tmp_path, manifest)

    def fill():
        # As long as one row: what comes after finds no room.
        resource.setrlimit(resource.RLIMIT_FSIZE, (28, 28))
        with pytest.raises(OSError, match=r"'.*rows\.bin'"):
            write(TeacherCache(tmp_path, manifest), [0, 1, 2], LOGITS, LABELS)

    process = fork(fill)
    process.join()
    assert process.exitcode == 0
    assert prepare_cache(tmp_path, manifest).tolist() == [1, 2]


def test_killed_at_any_moment(tmp_path):
    logits, labels = LOGITS.repeat(40, 1), LABELS.repeat(40)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    manifest = store(whole, logits, labels).manifest

    def build():
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
        if left[-1]:
            with refused('is not finished'):
                TeacherCache(killed)
        delay *= 1.1
    assert left == sorted(left, reverse=True) and len(set(left)) > 2
    assert (whole / 'rows.bin').read_bytes() == (
        killed / 'rows.bin').read_bytes()
    assert len(TeacherCache(killed)) == 120
