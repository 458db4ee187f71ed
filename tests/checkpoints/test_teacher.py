"""A distiller's teacher: whose weights a checkpoint has."""
from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Optional

import pytest
import torch
from torch import Tensor, nn

from wsld_plugin.checkpoints import FrozenTeacher, keep_teacher


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def whole(teacher: nn.Module) -> dict[str, Tensor]:
    """State dict of a distiller, as mmengine's own CheckpointHook saves it."""
    weights = {f'teacher.{key}': value.clone()
               for key, value in teacher.state_dict().items()}
    return dict(weights, **{'architecture.w': torch.ones(1)})


def altered(key: str, value: Optional[Tensor]) -> dict[str, Tensor]:
    weights = whole(net()) | {f'teacher.{key}': value}
    return {key: value for key, value in weights.items() if value is not None}


@pytest.mark.parametrize('weights, anothers', [
    (whole(net()), False),
    # Statistics may have gone on.
    (altered('1.running_mean', torch.ones(3)), False),
    (whole(net(1)), True),
    (altered('0.bias', None), True),
    (altered('0.bias', net().state_dict()['0.bias'].double()), True),
    (altered('0.bias', torch.nextafter(net().state_dict()['0.bias'],
                                       torch.tensor(9.))), True),
])
def test_weights_of_another_teacher_are_taken_out(
        weights: dict[str, Tensor], anothers: bool) -> None:
    before = dict(weights)
    assert keep_teacher(net(), weights) == anothers
    assert list(weights) == (['architecture.w'] if anothers else [*before])
    # A cache takes every network out.
    assert keep_teacher(nn.Identity(), before)
    assert list(before) == ['architecture.w']


def test_both_states_keep_what_changed_in_one(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / 'teacher.pth')
    teacher = FrozenTeacher(net(), str(tmp_path / 'teacher.pth'))
    changed = whole(net()) | {'teacher.1.running_mean': torch.ones(3)}
    average = {f'module.{key}': one for key, one in whole(net()).items()}
    saved = dict(state_dict=changed, ema_state_dict=average, meta={})
    before = deepcopy([changed, average])
    teacher.leave_out(saved)
    assert [*changed] == ['teacher.1.running_mean', 'architecture.w']
    assert [*average] == [f'module.{key}' for key in changed]
    teacher.put_back(saved)
    for state, old in zip([changed, average], before):
        assert state.keys() == old.keys()
        assert all(torch.equal(state[key], old[key]) for key in state)
