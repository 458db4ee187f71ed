"""The copy of a frozen teacher: what it may be of, and when it is used."""
from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hook_tester import shake
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsld_plugin.hooks.fast_teacher import FastNetwork, apart

PICTURES = torch.rand(
    8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Outputs = namedtuple('Outputs', 'features more')


class Backbone(nn.Module):
    """Normalises before it convolves, and whatever a test adds to that."""

    def __init__(self, extra: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)
        self.stem = nn.Conv2d(3, 8, 3, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(1e-4)
        self.relu = nn.ReLU(inplace=False)
        self.extra = extra

    def forward(self, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            x = x[0] + x[1]
        return self.extra(self, self.conv(self.relu(self.norm(self.stem(x)))))


class OptionalBackbone(Backbone):

    def forward(self, x: Any, scale: Any = None) -> Any:
        return super().forward(x if scale is None else x * scale)


class Teacher:
    """A backbone with the copy, and nothing around it."""

    def __init__(self, extra: Any = lambda net, x: (x, ),
                 dtype: torch.dtype | None = None, synced: bool = False,
                 kind: type[Backbone] = Backbone) -> None:
        torch.manual_seed(0)
        self.backbone = kind(extra)
        if synced:
            self.backbone.norm = nn.SyncBatchNorm(8)
        shake(self.backbone.requires_grad_(False))
        self.backbone.norm.eval()
        self.undo = ExitStack()
        self.fast = FastNetwork(SimpleNamespace(training=True), self.backbone,
                                dtype, self.undo)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Outputs with the hook, and those of the original."""
        ours = self.backbone(*args, **kwargs)
        return ours, self.fast._original(*args, **kwargs)

    @property
    def copied(self) -> bool:
        return self.fast._run is not self.fast._original


@pytest.mark.parametrize('extra', [
    lambda net, x: x, lambda net, x: [x, (x, )], lambda net, x: dict(a=x),
    lambda net, x: Outputs(x, dict(a=x + 1))
])
@pytest.mark.parametrize('inputs', [PICTURES, [PICTURES, PICTURES],
                                    (PICTURES, PICTURES)])
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_any_inputs_and_outputs(extra: Any, inputs: Any, dtype: Any) -> None:
    teacher = Teacher(extra, dtype)
    ours, theirs = teacher(inputs)
    assert type(ours) is type(theirs)
    assert apart(ours, theirs) < (1e-4 if dtype is None else 0.1)
    # torch.fx cannot look into lists, which is no matter in bfloat16.
    assert teacher.copied == (dtype is not None or inputs is PICTURES)


@pytest.mark.parametrize('synced', [False, True])
def test_folded_in_the_order_of_calls(synced: bool) -> None:
    teacher = Teacher(synced=synced)
    assert apart(*teacher(PICTURES)) < 1e-4
    assert not any(isinstance(one, _BatchNorm)
                   for one in teacher.fast._run.modules())
    teacher.undo.close()
    assert 'forward' not in vars(teacher.backbone)


@pytest.mark.parametrize('extra', [
    lambda net, x: x * torch.rand(()), lambda net, x: net.drop(x),
    lambda net, x: x * random.random(), lambda net, x: x * np.random.rand(),
    lambda net, x: x + torch.empty(1).bernoulli_(1e-9)
])
@pytest.mark.parametrize('dtype', [None, torch.bfloat16])
def test_random_teachers_are_not_copied(extra: Any, dtype: Any) -> None:
    teacher = Teacher(extra, dtype)
    drawn = []
    for forward in (teacher.backbone, teacher.fast._original):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        with torch.no_grad():
            drawn.append(torch.stack([forward(PICTURES) for _ in range(3)]))
    assert not teacher.copied
    assert torch.equal(*drawn)


def counting(net: Any, x: Tensor) -> Tensor:
    net.norm.num_batches_tracked += 1
    return x


@pytest.mark.parametrize('extra', [
    # An inplace ReLU, which the copy has, would alter them.
    lambda net, x: net.relu(x) + x, counting,
    lambda net, x: x + (1 if isinstance(x, Tensor) else 0),
    lambda net, x: x if x.sum() > 0 else -x,
    lambda net, x: x * float('nan'),
])
def test_what_would_differ_is_not_copied(extra: Any) -> None:
    teacher = Teacher(extra)
    for _ in range(2):
        torch.testing.assert_close(*teacher(PICTURES), rtol=0, atol=0,
                                   equal_nan=True)
    assert not teacher.copied


def test_arguments_that_torch_fx_takes_for_given(
        capsys: pytest.CaptureFixture) -> None:
    without, given = (Teacher(kind=OptionalBackbone) for _ in range(2))
    assert apart(*without(PICTURES)) == 0 and not without.copied
    assert 'Traceback' not in capsys.readouterr().err
    assert apart(*given(PICTURES, scale=torch.tensor(2.))) < 1e-4
    assert given.copied


@pytest.mark.parametrize('later', [False, True])
def test_what_overflows_is_not_used(later: bool) -> None:
    teacher = Teacher(lambda net, x: (x * 1e3, ), torch.float16)
    if later:
        teacher(PICTURES)
        if not teacher.copied:
            pytest.skip('this torch has no float16 on the CPU')
    for pictures in (PICTURES * 1e3, PICTURES):
        assert apart(*teacher(pictures)) < 1e-4


def swap(net: Any) -> None:
    """Other memory, unless what was freed is given out again."""
    first = net.conv.weight.data_ptr()
    for _ in range(100):
        net.conv.weight.data = net.conv.weight.data + 1
        if net.conv.weight.data_ptr() == first:
            break


@pytest.mark.parametrize('change', [
    lambda net: net.conv.weight.mul_(2), swap, lambda net: net.norm.train(),
    lambda net: net.norm.running_mean.add_(1), lambda net: net.load_state_dict(
        {key: one + 1 for key, one in net.state_dict().items()}),
    lambda net: setattr(net.conv, 'weight', nn.Parameter(
        net.conv.weight * 2, requires_grad=False)),
])
def test_changed_weights_are_followed(change: Callable[[Any], Any]) -> None:
    teacher = Teacher()
    teacher(PICTURES)
    assert teacher.copied
    torch.no_grad()(change)(teacher.backbone)
    for _ in range(2):
        assert apart(*teacher(PICTURES)) == 0
    assert not teacher.copied


@pytest.mark.parametrize('error', [
    torch.cuda.OutOfMemoryError('CUDA out of memory.'),
    RuntimeError('CUDA error: device-side assert triggered'),
    RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_device_is_not_overruled(error: RuntimeError) -> None:
    def extra(net: Any, x: Any) -> Any:
        raise error

    with pytest.raises(type(error), match=str(error)[:9]):
        Teacher(extra).fast._prepare(((PICTURES, ), {}))
