"""Taking a student out of checkpoints: weights, config, file."""
from __future__ import annotations

import hashlib
import io
import pickle
import re
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from mmengine.config import Config

from wsld_plugin.checkpoints import (
    CheckpointError,
    CheckpointMismatchError,
    export_student,
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
    data_preprocessor=None)
test_cfg = dict()
train_cfg = dict(max_epochs=-1)
scale = [(1, 2.5), None]
'''


def distiller() -> dict[str, torch.Tensor]:
    return {
        **{f'architecture.{key}': value for key, value in STUDENT.items()},
        'teacher.backbone.conv1.weight': torch.rand(5),
        'distiller.connectors.weight': torch.rand(6),
    }


def save(path: Path, weights: dict[str, torch.Tensor],
         **fields: Any) -> str:
    torch.save(dict(state_dict=weights, **fields), path)
    return str(path)


def check_weights(weights: dict[str, torch.Tensor]) -> None:
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
    found = student_weights(weights, 'x.pth')
    assert list(found) == list(STUDENT)
    assert all(found[key] is STUDENT[key] for key in STUDENT)


def test_classifier_whose_network_is_called_model() -> None:
    # As mmpretrain's TimmClassifier names it.
    weights = {'architecture.model.conv1.weight': torch.rand(1)}
    assert list(student_weights(weights, 'x')) == ['model.conv1.weight']


@pytest.mark.parametrize('weights', [
    {},
    {'teacher.backbone.conv1.weight': torch.rand(1)},
    {'conv1.weight': torch.rand(1)},
])
def test_no_student_is_refused(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointMismatchError, match=r'^x\.pth holds no st'):
        student_weights(weights, 'x.pth')


def test_export_holds_the_student_alone(tmp_path: Path) -> None:
    source = save(
        tmp_path / 'epoch_1.pth',
        distiller(),
        optimizer=dict(momentum=torch.rand(100)),
        message_hub=dict(log_scalars={}),
        meta=dict(
            cfg=CONFIG,
            dataset_meta=dict(classes=('a', 'b', 'c', 'd')),
            experiment_name='wsld_r34_r18_20260102_030405',
            epoch=1))
    path, averaged = export_student(source, f'{tmp_path}/new/students/')
    assert not averaged
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
    cfg = Config.fromstring(meta['cfg'], file_format='.py')
    assert cfg.model == dict(type='ImageClassifier', head=dict(num_classes=4))
    assert 'train_cfg' not in cfg
    # Once more, out of the exported file.
    again, _ = export_student(str(path), str(tmp_path / 'r18.pth'))
    assert again.name.startswith('r18_2')
    check_weights(read_checkpoint(str(again))['state_dict'])


def test_averaged_weights_are_told_apart(tmp_path: Path) -> None:
    # What mmengine's EMAHook writes: the average as the model's weights.
    source = save(
        tmp_path / 'epoch_1.pth',
        distiller(),
        ema_state_dict={
            f'module.{key}': value + 1
            for key, value in distiller().items()
        })
    path, averaged = export_student(source, str(tmp_path / 'r18'))
    assert averaged
    exported = read_checkpoint(str(path))
    assert exported['meta']['averaged']
    check_weights(exported['state_dict'])


def test_config_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / 'trap'
    source = save(
        tmp_path / 'epoch_1.pth',
        distiller(),
        meta=dict(cfg=f'model = dict(architecture=open({str(trap)!r}, "w"))'))
    path, _ = export_student(source, str(tmp_path / 'r18'))
    assert not trap.exists()
    assert read_checkpoint(str(path))['meta']['cfg'] == ''


def test_preprocessor_of_the_distiller_goes_with_the_student() -> None:
    model = dict(
        type='mmrazor.SingleTeacherDistill',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[1, 2, 3]),
        architecture=dict(type='ImageClassifier'))
    assert student_model(model) == dict(
        type='ImageClassifier', data_preprocessor=model['data_preprocessor'])
    assert student_model(model['architecture']) == model['architecture']


def test_config_path_of_the_student_is_resolved() -> None:
    student = student_model(
        dict(
            type='mmrazor.SingleTeacherDistill',
            architecture=dict(
                cfg_path='mmpretrain::resnet/resnet18_8xb32_in1k.py',
                pretrained=False)))
    assert student['backbone']['depth'] == 18
    assert student['_scope_'] == 'mmpretrain'
    # It stands beside the model there.
    assert student['data_preprocessor']['mean'] == [123.675, 116.28, 103.53]


class Trap:
    """A file that would run something when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), 'w')


def saved(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


WEIGHTS = {'w': torch.zeros(1000)}
OLD = dict(_use_new_zipfile_serialization=False)
# What a file holds, and what is said of it.
UNREADABLE: dict[str, tuple[bytes, str]] = {
    'cut': (saved(WEIGHTS)[:900], 'is cut off'),
    'cut, old format': (saved(WEIGHTS, **OLD)[:900], 'cannot be read: unexp'),
    'beginning': (saved(WEIGHTS, **OLD)[:20], 'cannot be read: EOFError'),
    'empty': (b'', 'is empty'),
    'HTML': (b'<!DOCTYPE html><p>', "no checkpoint: it starts with b'<!DOC"),
    'foreign': (pickle.dumps({'a': 1}), 'cannot be loaded as a checkpoint'),
    'None': (saved({'state_dict': None}), 'no dictionary of weights'),
    'tensor': (saved(torch.rand(2)), 'weights, .* but a Tensor'),
    'other': (saved({'model': WEIGHTS, 'epoch': 3}), 'but model, epoch'),
}


@pytest.mark.parametrize('name', [*UNREADABLE, 'missing', 'trap'])
def test_what_is_no_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / 'x.pth'
    content, message = UNREADABLE.get(name, (b'', 'is missing'))
    path.write_bytes(content)
    if name == 'missing':
        path.unlink()
    if name == 'trap':
        if not hasattr(torch.serialization, 'add_safe_globals'):
            pytest.skip('this torch runs whatever a file holds')
        message = r'refers to (_?io|builtins)\.open, .* could execute code'
        torch.save({'w': Trap(tmp_path / 'trap')}, path)
    with pytest.raises(CheckpointError, match=f'^{path} .*{message}') as e:
        read_checkpoint(str(path))
    assert '\n' not in str(e.value)
    assert isinstance(e.value, OSError) == (name == 'missing')
    assert not (tmp_path / 'trap').exists()


def test_student_is_no_training(tmp_path: Path) -> None:
    source = save(tmp_path / 'a, b.pth', distiller(), message_hub={})
    read_checkpoint(source, training=True)
    path, _ = export_student(source, str(tmp_path / 'r18'))
    read_checkpoint(str(path))
    with pytest.raises(CheckpointError, match='holds the student alone, and'):
        read_checkpoint(str(path), training=True)
