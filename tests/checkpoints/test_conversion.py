"""Weights under others' names: the same logits, or a refusal."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from wsld_plugin.checkpoints import (
    CheckpointMismatchError,
    load_strictly,
    mmpretrain_names,
)

ROOT = Path(__file__).parents[2]
NAMES = {
    'resnet18': 'resnet18_8xb32_in1k',
    'resnet50': 'resnet50_8xb32_in1k',
    'resnext50_32x4d': 'resnext50-32x4d_8xb32_in1k',
}


def theirs(name: str, **kwargs: Any) -> nn.Module:
    """A network of torchvision that was not left as it was made."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(**kwargs).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def ours(name: str) -> nn.Module:
    from mmpretrain import get_model
    return get_model(name).eval()


def same_logits(network: nn.Module, classifier: nn.Module) -> bool:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits = network(images)
        assert logits.std() > 0
        features = classifier.extract_feat(images)
        return torch.equal(classifier.head(features), logits)


@pytest.mark.parametrize('name', NAMES)
def test_logits_of_torchvision(name: str, tmp_path: Path) -> None:
    network, classifier = theirs(name), ours(NAMES[name])
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    assert not same_logits(network, classifier)
    load_strictly(classifier, str(tmp_path / 'x.pth'), 'teacher_ckpt')
    assert same_logits(network, classifier)


def test_files_from_before_batches_were_counted(tmp_path: Path) -> None:
    network, classifier = theirs('resnet18'), ours('resnet18_8xb32_in1k')
    torch.save(
        {f'module.{key}': value
         for key, value in network.state_dict().items()
         if not key.endswith('num_batches_tracked')}, tmp_path / 'x.pth')
    load_strictly(classifier, str(tmp_path / 'x.pth'), 'teacher_ckpt')
    assert same_logits(network, classifier)


def test_other_network_is_refused(tmp_path: Path) -> None:
    torch.save(theirs('resnet34').state_dict(), tmp_path / 'x.pth')
    with pytest.raises(CheckpointMismatchError, match='does not fit'):
        load_strictly(
            ours('resnet18_8xb32_in1k'), str(tmp_path / 'x.pth'), 'x')


def test_network_with_torchvisions_names_keeps_them(tmp_path: Path) -> None:
    network = theirs('resnet18')
    torch.save(network.state_dict(), tmp_path / 'x.pth')
    other = torchvision.models.resnet18()
    load_strictly(other, str(tmp_path / 'x.pth'), 'x')
    assert torch.equal(other.fc.weight, network.fc.weight)


def test_unknown_names_are_left_alone() -> None:
    for names in (['features.0.weight', 'classifier.6.weight'],
                  ['conv1.weight', 'layer1.0.conv1.weight'],
                  ['backbone.conv1.weight', 'head.fc.weight']):
        weights = {name: torch.rand(1) for name in names}
        assert list(mmpretrain_names(weights)) == names


def test_torchvision_teacher_in_a_distiller(
        tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = theirs('resnet34')
    torch.save(network.state_dict(), tmp_path / 'resnet34.pth')
    cfg = Config.fromfile(ROOT / 'configs' / 'wsld_r34_r18_in1k.py')
    cfg.model.teacher_ckpt = str(tmp_path / 'resnet34.pth')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        distiller = MODELS.build(cfg.model)
    distiller.eval()
    assert same_logits(network, distiller.teacher)
    assert 'do not match' not in ''.join(capsys.readouterr())
