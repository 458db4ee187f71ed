"""What is in a checkpoint: the student, and whose teacher."""
from __future__ import annotations

import hashlib
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from wsld_plugin.checkpoints import (
    CheckpointMismatchError,
    FrozenTeacher,
    export_student,
    keep_teacher,
    read_checkpoint,
    student_model,
    student_weights,
)

STUDENT = {
    'backbone.conv1.weight': torch.rand(2, 3),
    # The prefixes again, where they are part of the name.
    'backbone.architecture.module.weight': torch.rand(2),
    'head.fc.bias': torch.rand(4),
}
CONFIG = '''
default_scope = 'mmpretrain'
model = dict(
    type='mmrazor.SingleTeacherDistill',
    architecture=dict(type='ImageClassifier', head={'num_classes': 4}),
    teacher=dict(type='ImageClassifier'),
    data_preprocessor=dict(mean=[1, 2, 3]))
test_cfg = dict()
train_cfg = dict(max_epochs=-1)
scale = [(1, 2.5), None]
'''


def distiller() -> dict[str, Tensor]:
    return {
        **{f'architecture.{key}': value for key, value in STUDENT.items()},
        'teacher.backbone.conv1.weight': torch.rand(5),
        'distiller.connectors.weight': torch.rand(6),
    }


def save(path: Path, **fields: Any) -> str:
    torch.save(dict(state_dict=distiller(), **fields), path)
    return str(path)


def check_weights(weights: dict[str, Tensor]) -> None:
    assert list(weights) == list(STUDENT)
    assert all(torch.equal(weights[key], STUDENT[key]) for key in STUDENT)


@pytest.mark.parametrize('student, teacher', [
    ('', None),
    ('architecture.', 'teacher.'),
    ('module.architecture.', 'module.teacher.'),
    ('architecture.module.', None),
    # Of mmrazor 0.x.
    ('architecture.model.', 'distiller.teacher.'),
    ('module.architecture.model.', 'module.distiller.teacher.'),
    ('architecture.model.', 'architecture.model.distiller.teacher.'),
    ('architecture.', 'architecture.teacher.'),
])
def test_student_is_found(student: str, teacher: Optional[str]) -> None:
    weights = {f'{student}{key}': value for key, value in STUDENT.items()}
    if teacher:
        weights[f'{teacher}backbone.conv1.weight'] = torch.rand(5)
        weights['distiller.connectors.weight'] = torch.rand(6)
    check_weights(student_weights(weights, 'x.pth'))


def test_classifier_whose_network_is_called_model() -> None:
    # As mmpretrain's TimmClassifier names it.
    weights = {'architecture.model.conv1.weight': torch.rand(1)}
    assert list(student_weights(weights, 'x')) == ['model.conv1.weight']


@pytest.mark.parametrize('weights', [
    {},
    {'teacher.backbone.conv1.weight': torch.rand(1)},
    {'conv1.weight': torch.rand(1)},
])
def test_no_student_is_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointMismatchError, match=r'^x\.pth holds no st'):
        student_weights(weights, 'x.pth')


# As mmengine's EMAHook writes it: the average is the model's weights.
@pytest.mark.parametrize('others', [{}, dict(ema_state_dict={
    f'module.{key}': value + 1 for key, value in distiller().items()})])
def test_export_holds_the_student_alone(others: dict[str, Any],
                                        tmp_path: Path) -> None:
    source = save(
        tmp_path / 'epoch_1.pth', message_hub=dict(log_scalars={}), meta=dict(
            cfg=CONFIG, dataset_meta=dict(classes=('a', 'b', 'c', 'd')),
            experiment_name='wsld_r34_r18_20260102_030405', epoch=1), **others)
    path, averaged = export_student(source, f'{tmp_path}/new/students/')
    name = re.fullmatch(r'wsld_r34_r18_\d{8}-([0-9a-f]{8})\.pth', path.name)
    assert name is not None
    assert path.parent == tmp_path / 'new' / 'students'
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest.startswith(name[1])
    assert [file.name for file in path.parent.iterdir()] == [path.name]

    exported = read_checkpoint(str(path))
    assert set(exported) == {'state_dict', 'meta'}
    check_weights(exported['state_dict'])
    meta = exported['meta']
    assert meta['dataset_meta']['classes'] == ('a', 'b', 'c', 'd')
    assert (meta['source'], meta['epoch']) == ('epoch_1.pth', 1)
    assert averaged == meta['averaged'] == bool(others)
    cfg = Config.fromstring(meta['cfg'], file_format='.py')
    assert cfg.model == dict(
        type='ImageClassifier', head=dict(num_classes=4),
        data_preprocessor=dict(mean=[1, 2, 3]))
    assert 'train_cfg' not in cfg
    # Once more, out of the exported file.
    path, _ = export_student(str(path), str(tmp_path / 'r18.pth'))
    assert path.name.startswith('r18_2')
    again = read_checkpoint(str(path))
    check_weights(again['state_dict'])
    assert again['meta']['cfg'] == meta['cfg']
    assert again['meta']['averaged'] == averaged


def test_config_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / 'trap'
    source = save(tmp_path / 'epoch_1.pth', meta=dict(
        cfg=f'model = dict(architecture=open({str(trap)!r}, "w"))'))
    path, _ = export_student(source, str(tmp_path / 'r18'))
    assert not trap.exists()
    assert read_checkpoint(str(path))['meta']['cfg'] == ''


def test_config_path_of_the_student_is_resolved() -> None:
    student = student_model(dict(architecture=dict(
        cfg_path='mmpretrain::resnet/resnet18_8xb32_in1k.py',
        pretrained=False), data_preprocessor=None))
    assert student['backbone']['depth'] == 18
    assert student['_scope_'] == 'mmpretrain'
    # It stands beside the model there.
    assert student['data_preprocessor']['mean'] == [123.675, 116.28, 103.53]


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
