"""Taking a student out of checkpoints: weights, config, file."""
from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from wsld_plugin.checkpoints import (
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


def distiller(prefix: str = '') -> dict[str, torch.Tensor]:
    return {
        **{f'{prefix}architecture.{key}': value
           for key, value in STUDENT.items()},
        f'{prefix}teacher.backbone.conv1.weight': torch.rand(5),
        f'{prefix}distiller.connectors.weight': torch.rand(6),
    }


def save(path: Path, weights: dict[str, torch.Tensor],
         **fields: Any) -> str:
    torch.save(dict(state_dict=weights, **fields), path)
    return str(path)


def check_weights(weights: dict[str, torch.Tensor]) -> None:
    assert list(weights) == list(STUDENT)
    assert all(torch.equal(weights[key], STUDENT[key]) for key in STUDENT)


@pytest.mark.parametrize('weights', [
    STUDENT,
    distiller(),
    distiller('module.'),
    {f'architecture.module.{key}': value for key, value in STUDENT.items()},
])
def test_student_is_found(weights: dict[str, torch.Tensor]) -> None:
    check_weights(student_weights(weights, 'x.pth'))


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


def test_failed_export_leaves_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / 'epoch_1.pth', {'teacher.w': torch.rand(1)})
    with pytest.raises(CheckpointMismatchError, match='holds no student'):
        export_student(source, f'{tmp_path}/new/')
    assert not (tmp_path / 'new').exists()
    with pytest.raises(FileNotFoundError, match='nowhere'):
        export_student(str(tmp_path / 'nowhere.pth'), str(tmp_path / 'r18'))


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


def test_file_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save(torch.rand(2), tmp_path / 'x.pth')
    with pytest.raises(CheckpointMismatchError, match='holds a Tensor'):
        read_checkpoint(str(tmp_path / 'x.pth'))
