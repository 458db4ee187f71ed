"""Students in other formats: what they compute, and what is refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from wsld_plugin.checkpoints import CheckpointMismatchError, deployment
from wsld_plugin.checkpoints.deployment import (
    SUFFIXES,
    DeploymentError,
    deploy_student,
)

STUDENT = Path(__file__).parents[1] / 'tools' / 'tiny_student.py'
FORMATS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == 'torch_export' and not hasattr(torch, 'export'),
            reason='this torch has no torch.export'))
    for name in SUFFIXES
]


@pytest.fixture(scope='module')
def classifier() -> nn.Module:
    """A student whose normalisation matters."""
    cfg = Config.fromfile(STUDENT)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # At first the weights of some are 0, and their blocks idle.
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope='module')
def checkpoint(classifier: nn.Module,
               tmp_path_factory: pytest.TempPathFactory) -> str:
    """The student in a distiller's checkpoint, as training leaves it."""
    path = tmp_path_factory.mktemp('checkpoint') / 'epoch_1.pth'
    cfg = Config.fromfile(STUDENT)
    cfg.model = dict(
        type='mmrazor.SingleTeacherDistill', architecture=cfg.model)
    weights = {
        f'architecture.{key}': value
        for key, value in classifier.state_dict().items()
    }
    weights['teacher.head.fc.bias'] = torch.zeros(3)
    meta = dict(cfg=cfg.pretty_text,
                experiment_name='wsld_tiny_20260102_030405')
    torch.save(dict(state_dict=weights, meta=meta), path)
    return str(path)


def scans(count: int) -> torch.Tensor:
    cfg = Config.fromfile(STUDENT)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    return torch.stack([dataset[index]['inputs'] for index in range(count)])


def run(path: Path, images: torch.Tensor) -> np.ndarray:
    """Run a file as somebody without this package would."""
    if path.suffix == '.onnx':
        import onnxruntime
        session = onnxruntime.InferenceSession(
            str(path), providers=['CPUExecutionProvider'])
        return session.run(None, {'images': images.numpy()})[0]
    with torch.no_grad():
        if path.suffix == '.pt2':
            return torch.export.load(str(path)).module()(images).numpy()
        return torch.jit.load(str(path))(images).numpy()


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize('name', FORMATS)
def test_file_computes_the_students_logits(name: str, inside: bool,
                                           classifier: nn.Module,
                                           checkpoint: str,
                                           tmp_path: Path) -> None:
    if name == 'onnx':
        pytest.importorskip('onnxruntime')
    deployed = deploy_student(
        checkpoint,
        f'{tmp_path}/new/',
        name,
        with_preprocessing=inside,
        images=40)
    assert deployed.path == tmp_path / 'new' / f'wsld_tiny{SUFFIXES[name]}'
    assert list(deployed.path.parent.iterdir()) == [deployed.path]
    assert deployed.images == deployed.equal_top1 == 40
    images = scans(7)
    # By hand: mean and deviation of the digits' config.
    normalised = (images.float() - 77.5) / 82.3
    with torch.no_grad():
        expected = classifier(normalised, mode='tensor').numpy()
    # Another batch than any it has seen, in a file that is one file.
    got = run(deployed.path, images if inside else normalised)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_order_of_colours_is_inside(classifier: nn.Module,
                                    tmp_path: Path) -> None:
    cfg = Config.fromfile(STUDENT)
    cfg.model.data_preprocessor.update(mean=[10, 20, 30], std=[1, 2, 3])
    # No test set on this machine: pieces of photographs.
    cfg.test_dataloader.dataset = dict(
        type='ImageNet',
        data_root=str(tmp_path / 'nowhere'),
        split='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=40, edge='short'),
            dict(type='CenterCrop', crop_size=32),
            dict(type='PackInputs'),
        ])
    source = tmp_path / 'student.pth'
    torch.save(
        dict(
            state_dict=classifier.state_dict(),
            meta=dict(cfg=cfg.pretty_text)), source)
    deployed = deploy_student(
        str(source), str(tmp_path / 'r18'), 'torchscript',
        with_preprocessing=True, images=5)
    assert deployed.path == tmp_path / 'r18.pt'
    assert deployed.images == 5
    blue_first = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    red_first = blue_first[:, [2, 1, 0]].float()
    mean, std = (torch.tensor(value).view(3, 1, 1)
                 for value in ([10., 20., 30.], [1., 2., 3.]))
    with torch.no_grad():
        expected = classifier((red_first - mean) / std, mode='tensor')
    np.testing.assert_allclose(
        run(deployed.path, blue_first), expected.numpy(), rtol=1e-4,
        atol=1e-4)


@pytest.mark.parametrize('opset', [11, 17, 18])
def test_opset_is_the_one_asked_for(opset: int, checkpoint: str,
                                    tmp_path: Path) -> None:
    pytest.importorskip('onnxruntime')
    onnx = pytest.importorskip('onnx')
    out = tmp_path / 'student.onnx'
    assert deploy_student(
        checkpoint, str(out), 'onnx', opset=opset, images=3).path == out
    model = onnx.load(str(out))
    assert [(item.domain, item.version) for item in model.opset_import
            if item.domain == ''] == [('', opset)]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param and not batch.dim_value


def test_wrong_file_is_not_kept(checkpoint: str, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_layer(student: Any, images: torch.Tensor, path: Path,
                        opset: int | None) -> None:
        blocks = student.classifier.backbone.layer3
        relu, blocks[1].relu = blocks[1].relu, nn.Identity()
        torch.jit.trace(student, images).save(str(path))
        blocks[1].relu = relu

    monkeypatch.setitem(deployment._WRITERS, 'torchscript', without_a_layer)
    good = tmp_path / 'student.pt'
    good.write_bytes(b'what was there before')
    with pytest.raises(DeploymentError, match='was not kept: its logits diff'):
        deploy_student(checkpoint, str(good), 'torchscript', images=4)
    assert good.read_bytes() == b'what was there before'
    assert list(tmp_path.iterdir()) == [good]


def test_batch_of_one_size_is_not_kept(checkpoint: str, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch
                                       ) -> None:
    def for_two(student: Any, images: torch.Tensor, path: Path,
                opset: int | None) -> None:

        class ForTwo(nn.Module):

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return torch.zeros(2, 10)

        torch.jit.trace(ForTwo(), images).save(str(path))

    monkeypatch.setitem(deployment._WRITERS, 'torchscript', for_two)
    with pytest.raises(DeploymentError, match='have the shape'):
        deploy_student(
            checkpoint, str(tmp_path / 'x'), 'torchscript', images=4)
    assert list(tmp_path.iterdir()) == []


def test_config_can_be_named(classifier: nn.Module, tmp_path: Path) -> None:
    source = tmp_path / 'bare.pth'
    torch.save(classifier.state_dict(), source)
    with pytest.raises(DeploymentError, match='name the config file'):
        deploy_student(str(source), str(tmp_path / 'x'), 'torchscript')
    deployed = deploy_student(
        str(source), str(tmp_path / 'x'), 'torchscript',
        config=str(STUDENT), images=2)
    assert deployed.path.is_file()
    wrong = Config.fromfile(STUDENT)
    wrong.model.head.num_classes = 3
    wrong.dump(tmp_path / 'wrong.py')
    with pytest.raises(CheckpointMismatchError, match='does not fit'):
        deploy_student(
            str(source), str(tmp_path / 'y'), 'torchscript',
            config=str(tmp_path / 'wrong.py'), images=2)


@pytest.mark.parametrize('options, message', [
    (dict(file_format='trt'), "file_format is 'trt', expected one of onnx"),
    (dict(file_format='torchscript', opset=17), 'torchscript has none'),
    (dict(file_format='onnx', opset=6), 'opset is 6, expected 11 or newer'),
    (dict(file_format='onnx', images=1), 'images is 1, expected 2 or more'),
])
def test_wrong_arguments_are_named(options: dict[str, Any], message: str,
                                   tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=message):
        deploy_student('x.pth', str(tmp_path / 'x'), **options)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch,
                                    tmp_path: Path) -> None:
    monkeypatch.setattr(deployment, 'find_spec', lambda name: None)
    with pytest.raises(DeploymentError, match='onnx needs onnx, onnxruntime'):
        deploy_student('x.pth', str(tmp_path / 'x'), 'onnx')
