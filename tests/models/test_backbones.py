"""The networks that mmpretrain lacks, against what they are published as."""
from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from networks import FORWARDS, NETWORKS, Weights
from torch import nn

from wsld_plugin.models.backbones import (
    CIFARVGG,
    CIFARMobileNetV2,
    CIFARResNet,
    WideResNet,
)

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_' / 'models'
CIFAR_CONFIGS = sorted(CONFIGS.glob('*_cifar.py'))
# The smallest of each family.
SMALL = ('resnet8', 'wrn_16_1', 'vgg8', 'shufflenet_v1', 'shufflenet_v2',
         'mobilenet_v2', 'mobilenet_v1')
FAN_OUT = ('resnet8x4', 'wrn_16_2', 'vgg8', 'mobilenet_v2')
AS_TORCH = ('shufflenet_v1', 'shufflenet_v2', 'mobilenet_v1')


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(NETWORKS[name].backbone, _scope_='mmpretrain'))


def pictures(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    gen = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 32, generator=gen).to(dtype)


def shake(network: nn.Module) -> None:
    """Give every BatchNorm statistics and weights of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Large enough for a ReLU6 to show.
            nn.init.uniform_(module.weight, 0.5, 4)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize('name', NETWORKS)
def test_it_counts_what_the_reference_counts(name: str) -> None:
    network, (_, channels, parameters, multiply_adds) = (
        build(name), NETWORKS[name])
    classes, size = (1000, 224) if name == 'mobilenet_v1' else (100, 32)
    classifier = (channels + 1) * classes
    assert sum(weight.numel() for weight in network.parameters()
               ) + classifier == parameters
    network.eval()
    x = torch.zeros(1, 3, size, size)
    shape = network(x)[0].shape
    assert shape[:2] == (1, channels)
    flops = FlopAnalyzer(network, x).unsupported_ops_warnings(False)
    assert flops.by_operator()['conv'] + channels * classes == multiply_adds


@pytest.mark.parametrize('name', FORWARDS)
def test_it_computes_what_the_reference_computes(name: str) -> None:
    network = build(name).double()
    shake(network)
    network.eval()
    forward, settings = FORWARDS[name]
    weights = Weights(network)
    x = pictures(torch.float64)
    before = x.clone()
    with torch.no_grad():
        features = network(x)
        expected = forward(weights, x, **settings)
    assert isinstance(features, tuple)
    assert len(features) == 1
    assert weights.left == []
    scale = expected.std()
    assert torch.isfinite(scale)
    assert scale > 1e-3
    torch.testing.assert_close(
        features[0] / scale, expected / scale, rtol=1e-9, atol=1e-9)
    assert torch.equal(x, before)


def convolutions(name: str) -> list[nn.Conv2d]:
    """Those of a network that was spoiled and then initialised."""
    network = build(name)
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for conv in found:
        # MobileNetV1 keeps what torch does when it is built.
        for parameter in () if name == 'mobilenet_v1' else conv.parameters():
            nn.init.constant_(parameter, 7)
    network.init_weights()
    for module in network.modules():
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


@pytest.mark.parametrize('name', SMALL)
def test_every_weight_learns_in_either_layout(name: str) -> None:
    network = build(name).double()
    size = 64 if name == 'mobilenet_v1' else 32
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, size, size, generator=gen, dtype=torch.float64)
    grads = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout)
        network.zero_grad()
        # Not the mean, which BatchNorm keeps from depending on anything.
        network(x.to(memory_format=layout))[0].square().mean().backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*grads):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('name', SMALL)
def test_it_runs_in_bfloat16(name: str) -> None:
    network = build(name)
    network.eval()
    x = pictures()
    with torch.no_grad():
        expected = network(x)[0]
        with torch.autocast('cpu', torch.bfloat16):
            got = network(x)[0].float()
    assert (got - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(got, expected)


@pytest.mark.parametrize('network,settings,message', [
    (WideResNet, dict(depth=18),
     r'depth must be 6n \+ 4 \(10, 16, 22, ...\), got 18'),
    (WideResNet, dict(depth=4), r'depth must be 6n \+ 4 .*, got 4'),
    (WideResNet, dict(depth=16, widen_factor=0),
     'widen_factor must be 1 or more, got 0'),
    (CIFARResNet, dict(depth=18),
     'depth must be one of 8, 14, 20, 32, 44, 56, 110, got 18'),
    (CIFARVGG, dict(depth=16), 'depth must be 8 or 13, got 16'),
    (CIFARMobileNetV2, dict(widen_factor=0.05),
     'widen_factor must be 1/16 or more, got 0.05'),
])
def test_what_none_of_them_is_is_refused(network, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        network(**settings)


def test_biases_before_batchnorm_are_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        CIFARVGG(depth=8)


def test_importing_the_package_is_enough_to_build_them() -> None:
    code = '''
import sys
import wsld_plugin
from mmpretrain.registry import MODELS
assert 'mmpretrain.models' not in sys.modules
print(MODELS.build(dict(type='WideResNet', depth=16)).__module__)
'''
    done = subprocess.run([sys.executable, '-c', code],
                          capture_output=True,
                          text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'wsld_plugin.models.backbones.wide_resnet'


def test_there_is_a_config_for_each_network_of_the_pairs() -> None:
    assert {path.stem for path in CIFAR_CONFIGS} == {
        f'{name}_cifar' for name in (
            'resnet8', 'resnet20', 'resnet32', 'resnet56', 'resnet110',
            'resnet8x4', 'resnet32x4', 'wrn_16_2', 'wrn_40_1', 'wrn_40_2',
            'vgg8', 'vgg13', 'shufflenet_v1', 'shufflenet_v2', 'mobilenet_v2')
    }


@pytest.mark.parametrize(
    'path', [*CIFAR_CONFIGS, CONFIGS / 'mobilenet_v1.py'],
    ids=lambda path: path.stem)
def test_config_is_that_network(path: Path) -> None:
    name = path.stem[:-len('_cifar')] if '_cifar' in path.stem else path.stem
    cfg = Config.fromfile(path)
    # Others name it `_base_.NAME`.
    assert list(cfg) == [name]
    model = MODELS.build(dict(cfg[name], _scope_='mmpretrain'))
    # It would log a line for each weight.
    model.head.init_weights()
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters == NETWORKS[name].parameters
    assert type(model.backbone).__name__ == NETWORKS[name].backbone['type']
    model.eval()
    classes = 1000 if name == 'mobilenet_v1' else 100
    assert model(pictures(), mode='tensor').shape == (2, classes)
    assert model.data_preprocessor.num_classes == classes
    # The reference's classifiers: normal for VGG and MobileNetV2, else
    # torch's, whose bias WideResNet clears.
    weight, bias = (x.detach() for x in model.head.fc.parameters())
    bound = 1 / math.sqrt(weight.shape[1])
    if name.startswith(('vgg', 'mobilenet_v2')):
        assert weight.std() == pytest.approx(0.01, rel=0.05)
    else:
        assert 0.98 * bound < weight.abs().max() <= bound
    clears = name.startswith(('wrn', 'vgg', 'mobilenet_v2'))
    assert bias.any() != clears


def test_they_distil(tmp_path: Path) -> None:
    cfg = tmp_path / 'pair.py'
    bases = ', '.join(
        repr(str(CONFIGS.parent / name))
        for name in ('models/vgg8_cifar.py', 'models/wrn_40_1_cifar.py',
                     'distill/wsld.py'))
    cfg.write_text(f'''
_base_ = [{bases}]
model = dict(architecture=_base_.wrn_40_1, teacher=_base_.vgg8)
''')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromfile(cfg).model)
    from mmpretrain.structures import DataSample
    samples = [DataSample().set_gt_label(label) for label in (3, 97)]
    losses = model(pictures(), samples, mode='loss')
    assert set(losses) == {'student.loss', 'distill.loss_wsld'}
    sum(losses.values()).backward()
    assert all(torch.isfinite(weight.grad).all() and weight.grad.any()
               for weight in model.architecture.parameters())
    assert all(weight.grad is None for weight in model.teacher.parameters())
