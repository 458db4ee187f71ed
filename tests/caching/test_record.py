"""What a row keeps of a teacher's answer, and how exactly."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import torch
from stored import confident, store
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wsld_plugin.caching import TeacherCache
from wsld_plugin.caching.record import compare, decode, encode, unpack
from wsld_plugin.functional import log_cross_entropy, wsld_weight

CPU = torch.device('cpu')


def again(cache: TeacherCache) -> Tensor:
    return decode(unpack(cache.rows(range(len(cache))), CPU),
                  cache.manifest['num_classes'])


@pytest.mark.parametrize('classes, top_k', [(2, None), (10, None),
                                            (1000, 20), (300, 1),
                                            (40000, 3)])
def test_cross_entropy_and_weight_are_the_teachers(
        classes: int, top_k: Optional[int], tmp_path: Path) -> None:
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


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16,
                                   torch.float64])
def test_any_floating_dtype_is_widened_first(dtype: torch.dtype) -> None:
    logits, labels = (value[40:80] for value in confident(10))
    logits = (logits - logits.mean(1, keepdim=True)).to(dtype)
    made, wide = (encode(value, labels, None)
                  for value in (logits, logits.float()))
    assert (made['log_ce'] - wide['log_ce']).abs().max() < 1e-5
    assert torch.equal(made['logits'], wide['logits'])


def test_extreme_logits_stay_finite() -> None:
    labels = torch.tensor([0, 0, 1, 0, 1])
    logits = torch.tensor([[200., 0., 1.], [90., 0., 1.], [800., 0., 0.],
                           [0., 1e6, -1e6], [7e4, -7e4, 0.]])
    for fields in (encode(z, labels, None) for z in (logits, logits + 1e3)):
        rebuilt = decode(fields, 3)
        assert rebuilt.isfinite().all()
        torch.testing.assert_close(
            log_cross_entropy(rebuilt, labels),
            log_cross_entropy(logits, labels), rtol=1e-5, atol=0)
        # Beyond float16's 65504 a class has no share at any temperature.
        assert fields['logits'][3].tolist()[2] == -65504


def test_other_logits_are_rounded_only(tmp_path: Path) -> None:
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
    assert not compare(rebuilt, logits.scatter_add(
        1, true, torch.full((121, 1), 2e-3)), labels, None)[1]


def test_top_k_keeps_the_mass_of_the_rest(tmp_path: Path) -> None:
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
    rest = ours.scatter(1, kept, 0)
    assert ((rest - rest.max(1, keepdim=True).values).abs() *
            (rest > 0)).max() < 1e-9


@pytest.mark.parametrize('top_k', [None, 3])
def test_rows_go_to_the_device_in_one_copy(top_k: Optional[int],
                                           tmp_path: Path) -> None:
    copies = []

    class Copies(TorchDispatchMode):

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),
                               kwargs: Any = None) -> Any:
            result = func(*args, **kwargs or {})
            if func is torch.ops.aten._to_copy.default and (
                    args[0].device != result.device):
                copies.append(result.dtype)
            return result

    rows = store(tmp_path, *confident(10), top_k).rows([5, 6])
    with Copies():
        assert decode(unpack(rows, torch.device('meta')), 10).is_meta
    assert copies == [torch.uint8]
