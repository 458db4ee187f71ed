"""The networks that mmpretrain lacks, and the table, against what is known."""
from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.hub import get_config
from mmengine.registry import MODELS
from networks import COUNTS, FORWARDS, OTHERS, Weights
from torch import nn

from wsld_plugin.models import backbones
from wsld_plugin.models.networks import network

IMAGENET = ('resnet18', 'resnet34', 'resnet50', 'mbv1')
FAN_OUT = ('resnet8x4', 'wrn-16-2', 'vgg8', 'mbv2')
AS_TORCH = ('shufflev1', 'shufflev2', 'mbv1')


def config(name: str) -> dict[str, Any]:
    if name in OTHERS:
        return dict(network('resnet8', 'cifar100'), backbone=OTHERS[name])
    return network(name, 'in1k' if name in IMAGENET else 'cifar100')


def build(name: str) -> nn.Module:
    """A classifier, as mmpretrain builds it."""
    torch.manual_seed(0)
    return MODELS.build(dict(config(name), _scope_='mmpretrain'))


def shake(network: nn.Module) -> None:
    """Give every BatchNorm statistics and weights of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Large enough for a ReLU6 to show.
            nn.init.uniform_(module.weight, 0.5, 4)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize('name', COUNTS)
def test_it_counts_what_the_reference_counts(name: str) -> None:
    model = build(name).eval()
    size = 224 if name in IMAGENET else 32
    flops = FlopAnalyzer(model, torch.zeros(1, 3, size, size))
    adds = flops.unsupported_ops_warnings(False).by_operator()
    assert (sum(weight.numel() for weight in model.parameters()),
            adds['conv'] + adds['linear']) == COUNTS[name]


def test_the_page_has_the_same_counts() -> None:
    page = (Path(__file__).parents[2] / 'docs' / 'reproduction.md').read_text()
    rows = re.findall(r'^\| \[([\w-]+)\].* \| ([\d,]+) \| ([\d,]+) \|$', page,
                      re.MULTILINE)
    assert len(rows) == 15
    for name, *counts in rows:
        assert counts == [f'{count:,}' for count in COUNTS[name]]


@pytest.mark.parametrize('name', FORWARDS)
def test_it_computes_what_the_reference_computes(name: str) -> None:
    backbone = build(name).backbone.double()
    shake(backbone)
    backbone.eval()
    forward, settings = FORWARDS[name]
    weights = Weights(backbone)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        features, = backbone(x)
        expected = forward(weights, x, **settings)
    assert weights.left == []
    scale = expected.std()
    assert 1e-3 < scale < 1e9
    torch.testing.assert_close(
        features / scale, expected / scale, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, before)


def convolutions(name: str) -> list[nn.Conv2d]:
    """Those of a network that was spoiled and then initialised."""
    backbone = build(name).backbone
    found = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    for conv in found:
        # MobileNetV1 keeps what torch does when it is built.
        for parameter in () if name == 'mbv1' else conv.parameters():
            nn.init.constant_(parameter, 7)
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    return found


@pytest.mark.parametrize('name', FAN_OUT)
def test_it_starts_with_variances_by_fan_out(name: str) -> None:
    squares = []
    for conv in convolutions(name):
        fan_out = conv.out_channels * conv.kernel_size[0]**2
        squares.append((conv.weight.detach()**2).flatten() * fan_out / 2)
        assert conv.bias is None or not conv.bias.any()
    # Of 10,000 and more normal draws.
    assert torch.cat(squares).mean() == pytest.approx(1, abs=0.04)
    assert torch.cat(squares).max() > 9


@pytest.mark.parametrize('name', AS_TORCH)
def test_it_starts_as_torch_does(name: str) -> None:
    shares = []
    for conv in convolutions(name):
        bound = 1 / math.sqrt(conv.weight[0].numel())
        shares.append((conv.weight.detach() / bound).flatten())
    shares = torch.cat(shares)
    assert shares.abs().max() <= 1 + 1e-6
    assert (shares**2).mean() == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize('name', sorted(
    COUNTS.keys() - OTHERS.keys() - {*IMAGENET[:3]}))
def test_its_classifier_starts_as_the_references(name: str) -> None:
    head = build(name).head
    head.init_weights()
    # Normal for VGG and MobileNetV2, else torch's, whose bias WideResNet
    # clears.
    weight, bias = (x.detach() for x in head.fc.parameters())
    bound = 1 / math.sqrt(weight.shape[1])
    if name.startswith(('vgg', 'mbv2')):
        assert weight.std() == pytest.approx(0.01, rel=0.05)
    else:
        assert 0.98 * bound < weight.abs().max() <= bound
    assert bias.any() != name.startswith(('wrn', 'vgg', 'mbv2'))


@pytest.mark.parametrize('name', IMAGENET[:3])
def test_an_imagenet_resnet_is_mmpretrains(name: str) -> None:
    theirs = get_config(f'mmpretrain::resnet/{name}_8xb32_in1k.py')
    pixels = dict(theirs.data_preprocessor)
    assert network(name, 'in1k') == dict(
        theirs.model, data_preprocessor=pixels)


def test_pixels_are_centred_on_their_data_set() -> None:
    pixels = network('resnet20', 'cifar100')['data_preprocessor']
    # Of Tian et al.
    assert [x / 255 for x in pixels['mean']] == pytest.approx(
        [0.5071, 0.4867, 0.4408], abs=1e-6)
    assert [x / 255 for x in pixels['std']] == pytest.approx(
        [0.2675, 0.2565, 0.2761], abs=1e-6)


@pytest.mark.parametrize('build,settings,message', [
    (backbones.WideResNet, dict(depth=18),
     r'depth must be 6n \+ 4 \(10, 16, 22, ...\), got 18'),
    (backbones.WideResNet, dict(depth=4), r'depth must be 6n \+ 4 .*, got 4'),
    (backbones.WideResNet, dict(depth=16, widen_factor=0),
     'widen_factor must be 1 or more, got 0'),
    (backbones.CIFARResNet, dict(depth=18),
     'depth must be one of 8, 14, 20, 32, 44, 56, 110, got 18'),
    (backbones.CIFARVGG, dict(depth=16), 'depth must be 8 or 13, got 16'),
    (backbones.CIFARMobileNetV2, dict(widen_factor=0.05),
     'widen_factor must be 1/16 or more, got 0.05'),
    (network, dict(name='resnet19', dataset='in1k'),
     "name must be one of resnet18, resnet34, .*, mbv2, got 'resnet19'"),
    (network, dict(name='resnet18', dataset='imagenet'),
     "dataset must be one of in1k, cifar100, .*, got 'imagenet'"),
])
def test_what_none_of_them_is_is_refused(build, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize('name', ['resnet18', 'wrn-40-2'])
def test_changing_a_config_leaves_the_table_alone(name: str) -> None:
    one, before = network(name, 'digits'), repr(network(name, 'digits'))
    one['backbone']['depth'] = 1
    one['data_preprocessor']['mean'][0] = 1
    one['head']['loss']['type'] = 'other'
    one['head'].setdefault('init_cfg', {})['std'] = 1
    assert repr(network(name, 'digits')) == before


def test_biases_before_batchnorm_are_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        backbones.CIFARVGG(depth=8)
