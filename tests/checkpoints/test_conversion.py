"""Weights under others' names: the same logits, or a refusal."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from wsld_plugin.checkpoints import load_strictly, mmpretrain_names


def theirs(name: str) -> nn.Module:
    """A network of torchvision that was not left as it was made."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def same_logits(network: nn.Module, classifier: nn.Module) -> bool:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits = network(images)
        assert logits.std() > 0
        features = classifier.extract_feat(images)
        return torch.equal(classifier.head(features), logits)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_logits_of_torchvision(name: str, tmp_path: Path) -> None:
    from mmpretrain import get_model
    network = theirs(name)
    classifier = get_model(f'{name}_8xb32_in1k').eval()
    torch.save({f'module.{key}': value
                for key, value in network.state_dict().items()},
               tmp_path / 'x.pth')
    assert not same_logits(network, classifier)
    load_strictly(classifier, str(tmp_path / 'x.pth'), 'teacher_ckpt')
    assert same_logits(network, classifier)


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
