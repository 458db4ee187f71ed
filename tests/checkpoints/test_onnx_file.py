"""Students as ONNX files: what they compute, and what is refused."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
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
    path = tmp_path_factory.mktemp('a, b') / 'epoch_1.pth'
    cfg = Config.fromfile(STUDENT)
    cfg.model = dict(architecture=cfg.model)
    weights = {f'architecture.{key}': value
               for key, value in classifier.state_dict().items()}
    torch.save(dict(state_dict=weights, meta=dict(
        cfg=cfg.pretty_text, experiment_name='wsld_tiny_20260102_030405')),
        path)
    return str(path)


def check(path: Path, pictures: torch.Tensor, expected: torch.Tensor) -> None:
    """Run a file as somebody without this package would."""
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider'])
    got, = session.run(None, {'images': pictures.numpy()})
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_file_computes_the_students_logits(classifier: nn.Module,
                                           checkpoint: str,
                                           tmp_path: Path) -> None:
    written = export_onnx(checkpoint, f'{tmp_path}/new/')
    assert written.path == tmp_path / 'new' / 'wsld_tiny.onnx'
    assert list(written.path.parent.iterdir()) == [written.path]
    assert written.images == written.equal_top1 == 64
    # Another batch than any it has seen.
    images = torch.randn(7, 3, 32, 32)
    check(written.path, images, classifier(images, mode='tensor'))


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
    source = tmp_path / 'student.pth'
    torch.save(dict(state_dict=classifier.state_dict(),
                    meta=dict(cfg=cfg.pretty_text)), source)
    written = export_onnx(
        str(source), str(tmp_path / 'r18'), with_preprocessing=True)
    assert written.path == tmp_path / 'r18.onnx'
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
                                message: str, checkpoint: str, tmp_path: Path,
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
        export_onnx(checkpoint, str(good))
    assert good.read_bytes() == b'what was there before'
    assert list(tmp_path.iterdir()) == [good]


def test_tool_prints_the_comparison(checkpoint: str, tmp_path: Path,
                                    call_tool: Callable[..., None],
                                    capsys: pytest.CaptureFixture) -> None:
    """Of a file with bare weights, whose config is named."""
    bare = tmp_path / 'bare.pth'
    torch.save(torch.load(checkpoint)['state_dict'], bare)
    call_tool('export_student.py', bare, tmp_path / 'x', '--onnx', '--config',
              STUDENT)
    *_, compared, path = capsys.readouterr().out.splitlines()
    assert path == f'{tmp_path}/x.onnx' and Path(path).is_file()
    assert re.fullmatch(
        r'Compared with the student on 64 pictures: largest difference of a '
        r'logit [\d.e-]+ \(largest logit [\d.e-]+\), same class for 64/64\.',
        compared)


# What is said, the file, and the options.
MISTAKES: dict[str, tuple[str, ...]] = {
    'nowhere.pth is missing': ('nowhere.pth', ),
    'name the config file': ('bare.pth', ),
    'cannot read the config no.py': ('bare.pth', '--config', 'no.py'),
    'does not fit the ImageClassifier': ('bare.pth', '--config', 'wrong.py'),
}


@pytest.mark.parametrize('message', MISTAKES)
def test_mistakes_are_told_in_one_line(
        message: str, checkpoint: str, refusal: Callable[..., str],
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.load(checkpoint)['state_dict'], 'bare.pth')
    wrong = Config.fromfile(STUDENT)
    wrong.model.head.num_classes = 3
    wrong.dump('wrong.py')
    source, *options = MISTAKES[message]
    assert message in refusal(
        'export_student.py', source, 'out/', '--onnx', *options)
    assert not Path('out').exists()


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
