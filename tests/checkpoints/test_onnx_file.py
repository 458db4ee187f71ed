"""Students as ONNX files: what they compute, and what is refused."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hook_tester import shake
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from wsld_plugin.checkpoints import CheckpointError, export_onnx, onnx_file

pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
STUDENT = Path(__file__).parents[1] / 'tools' / 'tiny_student.py'


@pytest.fixture(scope='module')
def classifier() -> nn.Module:
    """A student whose normalisation matters."""
    cfg = Config.fromfile(STUDENT)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    # At first the weights of some are 0, and their blocks idle.
    shake(model)
    return model.eval()


@pytest.fixture(scope='module')
def bare(classifier: nn.Module,
         tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of its weights alone, whose config is named."""
    path = tmp_path_factory.mktemp('a, b') / 'bare.pth'
    torch.save(classifier.state_dict(), path)
    return str(path)


def check(path: object, pictures: torch.Tensor,
          expected: torch.Tensor) -> None:
    """Run a file as somebody without this package would."""
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    got, = session.run(None, {'images': pictures.numpy()})
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_file_computes_the_students_logits(
        classifier: nn.Module, bare: str, tmp_path: Path,
        call_tool: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    call_tool('export_student.py', bare, tmp_path / 'new' / 'x', '--onnx',
              '--config', STUDENT)
    *_, compared, path = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r'Compared with the student on 64 pictures: largest difference of a '
        r'logit [\d.e-]+ \(largest logit [\d.e-]+\), same class for 64/64\.',
        compared)
    assert [*map(str, (tmp_path / 'new').iterdir())] == [path]
    assert path.endswith('/x.onnx')
    # Another batch than any it has seen.
    images = torch.randn(7, 3, 32, 32)
    check(path, images, classifier(images, mode='tensor'))


@torch.no_grad()
def test_order_of_colours_is_inside(classifier: nn.Module,
                                    tmp_path: Path) -> None:
    cfg = Config.fromfile(STUDENT)
    cfg.model.data_preprocessor.update(mean=[10, 20, 30], std=[1, 2, 3])
    # No test set on this machine: pieces of photographs.
    cfg.test_dataloader.dataset = dict(
        type='ImageNet', data_root=str(tmp_path / 'nowhere'), split='val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=40, edge='short'),
            dict(type='CenterCrop', crop_size=32),
            dict(type='PackInputs'),
        ])
    # In a distiller's checkpoint, as training leaves it.
    cfg.model = dict(architecture=cfg.model)
    torch.save(dict(
        state_dict={f'architecture.{key}': value
                    for key, value in classifier.state_dict().items()},
        meta=dict(cfg=cfg.pretty_text,
                  experiment_name='wsld_tiny_20260102_030405')),
        tmp_path / 'epoch_1.pth')
    written = export_onnx(str(tmp_path / 'epoch_1.pth'), str(tmp_path),
                          with_preprocessing=True)
    assert written.path == tmp_path / 'wsld_tiny.onnx'
    assert written.images == 100
    blue_first = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    red_first = blue_first[:, [2, 1, 0]].float()
    mean, std = torch.tensor([[10., 20., 30.], [1., 2., 3.]])[..., None, None]
    check(written.path, blue_first,
          classifier((red_first - mean) / std, mode='tensor'))


@pytest.mark.parametrize('fault, message', [
    (lambda logits: logits + 1e-2, 'was not kept: its logits differ'),
    (lambda logits: logits * float('nan'), 'was not kept: its logits differ'),
    (lambda logits: logits[:2], 'have the shape'),
])
def test_wrong_file_is_not_kept(fault: Callable[[torch.Tensor], torch.Tensor],
                                message: str, bare: str, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back computes something else."""

    def write(student: nn.Module, images: torch.Tensor, path: Path) -> None:
        path.write_bytes(b'what the exporter would write')
        monkeypatch.setattr(
            onnx_file, '_read',
            lambda path: lambda images: fault(student(images)))

    monkeypatch.setattr(onnx_file, '_write', write)
    good = tmp_path / 'student.onnx'
    good.write_bytes(b'what was there before')
    with pytest.raises(CheckpointError, match=message):
        export_onnx(bare, str(good), config=str(STUDENT))
    assert good.read_bytes() == b'what was there before'
    assert list(tmp_path.iterdir()) == [good]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, 'find_spec', lambda name: None)
    with pytest.raises(CheckpointError, match='ONNX needs onnx, onnxruntime'):
        export_onnx('x.pth', 'x')


@pytest.mark.parametrize('domain', ['', 'somebody.else'])
def test_what_cannot_be_read_back_is_no_trace(domain: str,
                                              tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
            for name in 'ab']
    node = helper.make_node('Unknown', ['a'], ['b'], domain=domain)
    graph = helper.make_graph([node], 'graph', ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[
        helper.make_opsetid('', 17), helper.make_opsetid('somebody.else', 1)]),
        str(tmp_path / 'x.onnx'))
    with pytest.raises(onnx_file.OnnxError, match='was not kept'):
        onnx_file._read(tmp_path / 'x.onnx')
