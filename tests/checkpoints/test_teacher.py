"""A distiller's teacher: whose weights a checkpoint has."""
from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from torch import Tensor, nn

from wsld_plugin.checkpoints import (
    CheckpointMismatchError,
    FrozenTeacher,
    keep_teacher,
)


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


def test_a_cache_takes_every_network_out() -> None:
    weights = whole(net())
    assert keep_teacher(nn.Identity(), weights)
    assert list(weights) == ['architecture.w']


@pytest.fixture
def path(tmp_path: Path) -> str:
    torch.save(net().state_dict(), tmp_path / 'teacher.pth')
    return str(tmp_path / 'teacher.pth')


def checkpoint(averaged: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = dict(state_dict=whole(net()), meta={})
    if averaged:
        found['ema_state_dict'] = {
            f'module.{key}': value for key, value in whole(net()).items()}
    return found


@pytest.mark.parametrize('averaged', [False, True])
def test_what_the_file_holds_is_left_out_and_put_back(averaged: bool,
                                                      path: str) -> None:
    teacher, saved = FrozenTeacher(net(), path), checkpoint(averaged)
    states = [saved[name] for name in saved if name != 'meta']
    # One that changed stays, in both states.
    changed = 'teacher.1.running_mean'
    saved['state_dict'][changed] = torch.ones(3)
    before = deepcopy(states)
    teacher.leave_out(saved)
    for state in states:
        assert {key.replace('module.', '') for key in state} == {
            'architecture.w', changed}
    assert teacher.is_of(saved)
    teacher.put_back(saved)
    for state, old in zip(states, before):
        assert state.keys() == old.keys()
        assert all(torch.equal(state[key], old[key]) for key in state)


def test_another_teachers_checkpoint_is_not_completed(path: str) -> None:
    saved = checkpoint()
    FrozenTeacher(net(), path).leave_out(saved)
    torch.save(net(1).state_dict(), path)
    other = FrozenTeacher(net(1), path)
    assert not other.is_of(saved)
    with pytest.raises(CheckpointMismatchError,
                       match=rf'another teacher: .*teacher_ckpt={path}'):
        other.put_back(saved)
    # One by mmengine's own hook is nobody's.
    assert not other.is_of(checkpoint())
