"""The cache's file format: what it keeps, how exactly, what it refuses."""
from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import torch
from torch import Tensor

from wsld_plugin.functional import log_cross_entropy, wsld_weight
from wsld_plugin.models import TeacherCache, TeacherCacheError
from wsld_plugin.models.teacher_cache import (
    TeacherCacheWriter,
    decode,
    encode,
    finish_cache,
    largest_difference,
    locked,
    make_manifest,
    prepare_cache,
    to_tensors,
    unfinished_batches,
)


def fields_of(logits: Tensor, labels: Tensor,
              top_k: Optional[int]) -> dict[str, np.ndarray]:
    fields = {
        name: value.numpy()
        for name, value in encode(logits, labels, top_k).items()
    }
    zeros = np.zeros(len(labels))
    return dict(fields, label=labels.numpy(), pixels=zeros, inputs=zeros)


def stored(folder: Path, logits: Tensor, labels: Tensor,
           top_k: Optional[int]) -> TeacherCache:
    """Logits through the files."""
    manifest = make_manifest(logits.shape[1], top_k, count=len(logits))
    with locked(folder):
        assert not prepare_cache(folder, manifest)
        writer = TeacherCacheWriter(folder)
        writer.write(0, **fields_of(logits, labels, manifest['top_k']))
        writer.close()
        finish_cache(folder)
    return TeacherCache(folder)


def again(cache: TeacherCache) -> Tensor:
    return decode(to_tensors(cache.rows(np.arange(len(cache)))),
                  cache.num_classes)


def confident(classes: int) -> tuple[Tensor, Tensor]:
    """Logits whose true class is ahead by -60 to 60 nats."""
    generator = torch.Generator().manual_seed(0)
    margins = torch.arange(-60, 61).float()
    logits = 2 * torch.randn(len(margins), classes, generator=generator)
    labels = torch.randint(classes, margins.shape, generator=generator)
    true = labels.unsqueeze(1)
    others = logits.scatter(1, true, float('-inf')).logsumexp(1)
    logits.scatter_(1, true, (others + margins).unsqueeze(1))
    return logits + 40 * torch.randn(len(margins), 1), labels


@pytest.mark.parametrize('classes, top_k', [(2, None), (10, None),
                                            (1000, 20), (300, 1)])
def test_cross_entropy_and_weight_are_the_teachers(
        classes: int, top_k: Optional[int], tmp_path: Path) -> None:
    logits, labels = confident(classes)
    rebuilt = again(stored(tmp_path, logits, labels, top_k))
    assert rebuilt.dtype == torch.float32
    assert torch.isfinite(rebuilt).all()
    exact = log_cross_entropy(logits, labels)
    # Half a unit in the last place of 60 is 2e-6.
    assert (log_cross_entropy(rebuilt, labels) - exact).abs().max() < 8e-6
    # A student as good as the teacher, where an error shows most.
    weights = wsld_weight(logits, rebuilt, labels)
    assert (weights - wsld_weight(logits, logits, labels)).abs().max() < 3e-6
    near = exact.abs() < 16
    assert near.sum() > 20
    assert (weights - (1 - np.exp(-1)))[near].abs().max() < 1e-6


def test_cross_entropy_below_float32_is_kept() -> None:
    labels = torch.tensor([0, 0, 1])
    logits = torch.tensor([[200., 0., 1.], [90., 0., 1.], [800., 0., 0.]])
    fields = encode(logits, labels, None)
    rebuilt = decode(dict(fields, label=labels), 3)
    torch.testing.assert_close(
        log_cross_entropy(rebuilt, labels),
        log_cross_entropy(logits, labels),
        rtol=1e-6,
        atol=0)


def test_other_logits_are_rounded_only(tmp_path: Path) -> None:
    logits, labels = confident(10)
    cache = stored(tmp_path, logits, labels, None)
    true = labels.unsqueeze(1)
    rows = [z.scatter(1, true, float('-inf')) for z in (logits, again(cache))]
    ours, theirs = (z - z.max(1, keepdim=True).values for z in rows)
    mask = torch.isfinite(ours)
    gap = (ours - theirs)[mask].abs()
    assert (gap <= ours[mask].abs() * 2**-11 + 1e-5).all()
    assert gap.max() > 0
    assert largest_difference(cache.rows(np.arange(121)), logits)[1] == 0
    found = largest_difference(cache.rows(np.arange(121)), logits * 1.01)
    assert found[1] > 0.01


def test_top_k_keeps_the_mass_of_the_rest(tmp_path: Path) -> None:
    logits, labels = confident(1000)
    cache = stored(tmp_path, logits, labels, 20)
    assert cache.rows(np.arange(1)).dtype.itemsize == 5 * 4 + 20 * 4
    probs, rebuilt = (z.double().softmax(1) for z in (logits, again(cache)))
    kept = probs.scatter(1, labels.unsqueeze(1), 2).topk(21).indices
    mass, same = (1 - p.gather(1, kept).sum(1) for p in (probs, rebuilt))
    torch.testing.assert_close(same, mass, rtol=2e-2, atol=1e-9)
    torch.testing.assert_close(
        rebuilt.gather(1, kept), probs.gather(1, kept), rtol=5e-3, atol=1e-9)
    # Each of the rest alike.
    rest = rebuilt.scatter(1, kept, 0)
    assert ((rest - rest.max(1, keepdim=True).values).abs() *
            (rest > 0)).max() < 1e-9


def test_default_of_top_k() -> None:
    assert make_manifest(256, None, count=1)['top_k'] is None
    assert make_manifest(257, None, count=1)['top_k'] == 64
    assert make_manifest(10, 8, count=1)['top_k'] == 8
    assert make_manifest(10, 9, count=1)['top_k'] is None
    assert make_manifest(1000, 1000, count=1)['top_k'] is None
    with pytest.raises(TeacherCacheError, match='top_k must be at least 1'):
        make_manifest(10, 0, count=1)


def test_a_build_goes_on_whatever_its_manifest_holds(tmp_path: Path) -> None:
    manifest = make_manifest(
        10, None, count=1, preprocessor=dict(mean=(1., 2.), type=dict))
    for _ in range(2):
        assert not prepare_cache(tmp_path, manifest)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(TeacherCacheError, match='not finite for 1 of 2'):
        encode(torch.tensor([[0., float('inf')], [0., 1.]]),
               torch.tensor([0, 0]), None)


def test_copies_share_the_file(tmp_path: Path) -> None:
    logits, labels = confident(10)
    cache = stored(tmp_path, logits, labels, None)
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(again(twin), again(cache))
        assert len(pickle.dumps(twin)) < 500


def half_done(folder: Path) -> dict[str, Any]:
    logits, labels = confident(10)
    manifest = make_manifest(10, None, count=121, seed=0, teacher=dict(a=1))
    with locked(folder):
        prepare_cache(folder, manifest)
    writer = TeacherCacheWriter(folder)
    writer.write(40, **fields_of(logits[40:60], labels[40:60], None))
    writer.flush()
    # Not flushed: a kill loses it.
    writer.write(60, **fields_of(logits[60:80], labels[60:80], None))
    return manifest


def test_unfinished_cache_is_not_read(tmp_path: Path) -> None:
    half_done(tmp_path)
    with pytest.raises(TeacherCacheError, match='lacks 101 of 121 rows'):
        TeacherCache(tmp_path)
    assert unfinished_batches(tmp_path, 20).tolist() == [0, 1, 3, 4, 5, 6]
    with pytest.raises(TeacherCacheError, match=r'lacks 101 rows.* is 0'):
        finish_cache(tmp_path)


def test_only_the_same_cache_is_continued(tmp_path: Path) -> None:
    manifest = half_done(tmp_path)
    before = (tmp_path / 'entries.npy').read_bytes()
    assert not prepare_cache(tmp_path, manifest)
    assert (tmp_path / 'entries.npy').read_bytes() == before
    assert not prepare_cache(tmp_path, dict(manifest, versions=dict(x='2')))
    for changed, said in ((dict(seed=1), 'with seed=0, .* now has 1'),
                          (dict(teacher=dict(a=2)), r'teacher\.a=1, .* has 2'),
                          (dict(count=5), 'count=121'),
                          (dict(top_k=3), 'top_k=None')):
        with pytest.raises(TeacherCacheError, match=said):
            prepare_cache(tmp_path, dict(manifest, **changed))


def test_two_builders_at_once_are_refused(tmp_path: Path) -> None:
    refused = pytest.raises(TeacherCacheError, match='another process')
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(TeacherCacheError, match=r'it holds thesis\.tex'):
        prepare_cache(tmp_path, make_manifest(10, None, count=9))
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_too_large_for_the_disk(tmp_path: Path) -> None:
    with pytest.raises(TeacherCacheError, match='needs 20160000'):
        prepare_cache(tmp_path, make_manifest(1000, 1000, count=10**13))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('damage, said', [
    ('missing', 'there is no teacher cache in'),
    ('manifest', r'manifest\.json cannot be read'),
    ('format', 'has format 7, expected 1'),
    ('entries', r'entries\.npy cannot be read'),
    ('cut', r'entries\.npy cannot be read'),
    ('rows', r'\(5,\) rows of 36 bytes, expected \(121,\)'),
])
def test_damage_is_told(damage: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / 'cache'
    if damage != 'missing':
        stored(folder, *confident(10), None)
    entries, manifest = folder / 'entries.npy', folder / 'manifest.json'
    if damage == 'manifest':
        manifest.write_text('{"complete": tr')
    elif damage == 'format':
        text = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(dict(text, format=7)))
    elif damage == 'entries':
        entries.unlink()
    elif damage == 'cut':
        entries.write_bytes(entries.read_bytes()[:-9])
    elif damage == 'rows':
        np.save(entries, np.load(entries)[:5])
    with pytest.raises(TeacherCacheError, match=said):
        TeacherCache(folder)
