"""The networks that mmpretrain lacks, and the table, against what is known."""
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.hub import get_config
from mmengine.registry import MODELS
from torch import nn

from wsld_plugin.models import backbones
from wsld_plugin.models.networks import network

# Parameters, and multiply-adds of convolutions and the linear layer, of a
# plain-torch transcription of the models of
# https://github.com/HobbitLong/RepDistiller (CIFAR, 100 classes, 32 pixels)
# and https://github.com/bellymonster/Weighted-Soft-Label-Distillation
# (MobileNetV1, 1000 classes, 224 pixels), and of torchvision's other ResNets
# for ImageNet. Of one or two members of each family also the transcription's
# features of `spread` pictures by `spread` weights, as `told` in one number.
KNOWN = {
    'resnet18': (11_689_512, 1_814_073_344),
    'resnet34': (21_797_672, 3_663_761_408),
    'resnet50': (25_557_032, 4_089_184_256),
    'mbv1': (4_231_976, 568_740_352, -49.1577158442),
    'resnet8': (83_892, 12_507_392),
    'resnet14': (181_108, 26_663_168, -59.8441295902),
    'resnet20': (278_324, 40_818_944),
    'resnet32': (472_756, 69_130_496),
    'resnet44': (667_188, 97_442_048),
    'resnet56': (861_620, 125_753_600),
    'resnet110': (1_736_564, 253_155_584),
    'resnet8x4': (1_233_540, 177_071_104, 79.2921826855),
    'resnet32x4': (7_433_860, 1_083_040_768),
    'wrn-16-1': (180_916, 26_663_168, 18.925690778),
    'wrn-16-2': (703_284, 101_118_464, 115.262240279),
    'wrn-40-1': (569_780, 83_286_272),
    'wrn-40-2': (2_255_156, 327_610_880),
    'vgg8': (3_965_028, 96_192_512, 127.288050626),
    'vgg13': (9_462_180, 284_936_192, -39.3072307362),
    'shufflev1': (949_258, 38_691_456, -152.580272474),
    'shufflev2': (1_355_528, 44_504_448, 413.369542962),
    'mbv2': (812_836, 6_523_648, -42.6588812248),
}
# Members of the families that no config trains; each ends with 64 channels.
OTHERS = {
    'resnet14': dict(type='CIFARResNet', depth=14),
    'resnet44': dict(type='CIFARResNet', depth=44),
    'wrn-16-1': dict(type='WideResNet', depth=16, widen_factor=1),
}
IMAGENET = ('resnet18', 'resnet34', 'resnet50', 'mbv1')
FAN_OUT = ('resnet8x4', 'wrn-16-2', 'vgg8', 'mbv2')
AS_TORCH = ('shufflev1', 'shufflev2', 'mbv1')


def build(name):
    """A classifier, as mmpretrain builds it."""
    config = network(name, 'in1k' if name in IMAGENET else 'cifar100'
                     ) if name not in OTHERS else dict(
                         network('resnet8', 'cifar100'), backbone=OTHERS[name])
    torch.manual_seed(0)
    return MODELS.build(dict(config, _scope_='mmpretrain'))


def spread(shape, step):
    """Exact numbers of [-1, 1] without an order, others for another step."""
    index = torch.arange(shape.numel())
    return (index * (index + step) % 1009).view(shape).double() / 504 - 1


@pytest.mark.parametrize('name', KNOWN)
def test_it_counts_what_the_reference_counts(name):
    model = build(name).eval()
    size = 224 if name in IMAGENET else 32
    flops = FlopAnalyzer(model, torch.zeros(1, 3, size, size))
    adds = flops.unsupported_ops_warnings(False).by_operator()
    assert (sum(weight.numel() for weight in model.parameters()),
            adds['conv'] + adds['linear']) == KNOWN[name][:2]


def test_the_page_has_the_same_counts():
    page = (Path(__file__).parents[2] / 'docs' / 'reproduction.md').read_text()
    rows = re.findall(r'^\| \[([\w-]+)\].* \| ([\d,]+) \| ([\d,]+) \|$', page,
                      re.MULTILINE)
    assert len(rows) == 15
    for name, *counts in rows:
        assert counts == [f'{count:,}' for count in KNOWN[name][:2]]


@pytest.mark.parametrize('name', [
    name for name, known in KNOWN.items() if known[2:]])
def test_it_computes_what_the_reference_computes(name):
    backbone = build(name).backbone.double()
    backbone.eval()
    x = 4 * spread(torch.Size((2, 3, 32, 32)), 1)
    before = x.clone()
    with torch.no_grad():
        for step, (key, value) in enumerate(backbone.state_dict().items()):
            numbers = spread(value.shape, step)
            if value.dim() > 1:
                value.copy_(numbers * (3 / value[0].numel())**0.5)
            elif value.dim():
                # Large enough for a ReLU6 to show.
                value.copy_(numbers / 2 + key.endswith('var') +
                            1.7 * key.endswith('weight'))
        features, = backbone(x)
    told = (features * spread(features.shape, 2)).sum() / features.std()
    assert told.item() == pytest.approx(KNOWN[name][2], rel=1e-9)
    assert torch.equal(x, before)


@pytest.mark.parametrize('name', FAN_OUT + AS_TORCH)
def test_it_starts_as_the_references(name):
    backbone = build(name).backbone
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    for conv in convs:
        # MobileNetV1 keeps what torch does when it is built.
        for parameter in () if name == 'mbv1' else conv.parameters():
            nn.init.constant_(parameter, 7)
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
    squares = []
    for conv in convs:
        fan = conv.weight[0].numel() if name in AS_TORCH else (
            conv.out_channels * conv.kernel_size[0]**2)
        squares.append((conv.weight.detach()**2).flatten() * fan)
        assert conv.bias is None or not conv.bias.any()
    squares = torch.cat(squares)
    # Of 10,000 and more draws: uniform up to 1, or normal with variance 2.
    if name in AS_TORCH:
        assert squares.max() <= 1 + 2e-6
        assert squares.mean() == pytest.approx(1 / 3, abs=0.01)
    else:
        assert squares.max() > 18
        assert squares.mean() == pytest.approx(2, abs=0.08)


@pytest.mark.parametrize('name', sorted(
    KNOWN.keys() - OTHERS.keys() - {*IMAGENET[:3]}))
def test_its_classifier_starts_as_the_references(name):
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
def test_an_imagenet_resnet_is_mmpretrains(name):
    theirs = get_config(f'mmpretrain::resnet/{name}_8xb32_in1k.py')
    pixels = dict(theirs.data_preprocessor)
    assert network(name, 'in1k') == dict(
        theirs.model, data_preprocessor=pixels)


def test_pixels_are_centred_on_their_data_set():
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
def test_what_none_of_them_is_is_refused(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize('name', ['resnet18', 'wrn-40-2'])
def test_changing_a_config_leaves_the_table_alone(name):
    one, before = network(name, 'digits'), repr(network(name, 'digits'))
    one['backbone']['depth'] = 1
    one['data_preprocessor']['mean'][0] = 1
    one['head']['loss']['type'] = 'other'
    one['head'].setdefault('init_cfg', {})['std'] = 1
    assert repr(network(name, 'digits')) == before


def test_biases_before_batchnorm_are_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        backbones.CIFARVGG(depth=8)
