"""What the reference's networks count, and what they compute.

The counts are of a plain-torch transcription of the models of
https://github.com/HobbitLong/RepDistiller (CIFAR, 100 classes, 32 pixels)
and https://github.com/bellymonster/Weighted-Soft-Label-Distillation
(MobileNetV1, 1000 classes, 224 pixels). The forwards are functions of a list
of weights, so they share neither modules nor loops with the package.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(NamedTuple):
    """Backbone, channels that it ends with, parameters, multiply-adds."""

    backbone: dict
    channels: int
    parameters: int
    multiply_adds: int


def resnet(depth: int, *counts: int, x4: bool = False) -> Network:
    widths = dict(stem_channels=32, base_channels=64) if x4 else {}
    return Network(
        dict(type='CIFARResNet', depth=depth, **widths), 256 if x4 else 64,
        *counts)


def wrn(depth: int, widen_factor: int, *counts: int) -> Network:
    return Network(
        dict(type='WideResNet', depth=depth, widen_factor=widen_factor),
        64 * widen_factor, *counts)


NETWORKS = {
    'resnet8': resnet(8, 83_892, 12_507_392),
    'resnet14': resnet(14, 181_108, 26_663_168),
    'resnet20': resnet(20, 278_324, 40_818_944),
    'resnet32': resnet(32, 472_756, 69_130_496),
    'resnet44': resnet(44, 667_188, 97_442_048),
    'resnet56': resnet(56, 861_620, 125_753_600),
    'resnet110': resnet(110, 1_736_564, 253_155_584),
    'resnet8x4': resnet(8, 1_233_540, 177_071_104, x4=True),
    'resnet32x4': resnet(32, 7_433_860, 1_083_040_768, x4=True),
    'wrn_16_1': wrn(16, 1, 180_916, 26_663_168),
    'wrn_16_2': wrn(16, 2, 703_284, 101_118_464),
    'wrn_40_1': wrn(40, 1, 569_780, 83_286_272),
    'wrn_40_2': wrn(40, 2, 2_255_156, 327_610_880),
    'vgg8': Network(dict(type='CIFARVGG', depth=8), 512, 3_965_028,
                    96_192_512),
    'vgg13': Network(dict(type='CIFARVGG', depth=13), 512, 9_462_180,
                     284_936_192),
    'shufflenet_v1': Network(dict(type='CIFARShuffleNetV1'), 960, 949_258,
                             38_691_456),
    'shufflenet_v2': Network(dict(type='CIFARShuffleNetV2'), 1024, 1_355_528,
                             44_504_448),
    'mobilenet_v2': Network(dict(type='CIFARMobileNetV2'), 1280, 812_836,
                            6_523_648),
    'mobilenet_v1': Network(dict(type='MobileNetV1'), 1024, 4_231_976,
                            568_740_352),
}


class Weights:
    """A network's weights, handed out in their order."""

    def __init__(self, network: nn.Module) -> None:
        self.left = [
            value for name, value in network.state_dict().items()
            if not name.endswith('num_batches_tracked')
        ]

    def conv(self, x: Tensor, stride: int = 1, bias: bool = False) -> Tensor:
        weight = self.left.pop(0)
        return F.conv2d(
            x,
            weight,
            self.left.pop(0) if bias else None,
            stride,
            padding=weight.shape[2] // 2,
            groups=x.shape[1] // weight.shape[1])

    def norm(self, x: Tensor) -> Tensor:
        gamma, beta, mean, var = (
            self.left.pop(0)[:, None, None] for _ in range(4))
        return (x - mean) / (var + 1e-5).sqrt() * gamma + beta

    def conv_norm(self, x: Tensor, stride: int = 1) -> Tensor:
        return self.norm(self.conv(x, stride))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel 0 of each group, then channel 1 of each, and so on."""
    size = x.shape[1] // groups
    return x[:, [group * size + i for i in range(size)
                 for group in range(groups)]]


def cifar_resnet(w: Weights, x: Tensor, blocks: int, widens: bool) -> Tensor:
    x = w.conv_norm(x).relu()
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            out = w.conv_norm(x, stride).relu()
            out = w.conv_norm(out)
            if not block and (stage or widens):
                x = w.conv_norm(x, stride)
            x = (x + out).relu()
    return x


def wide_resnet(w: Weights, x: Tensor, blocks: int, widens: bool) -> Tensor:
    x = w.conv(x)
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            first = w.norm(x).relu()
            out = w.norm(w.conv(first, stride)).relu()
            out = w.conv(out)
            if not block and (stage or widens):
                x = w.conv(first, stride)
            x = x + out
    return w.norm(x).relu()


def vgg(w: Weights, x: Tensor, convs: int) -> Tensor:
    for stage in range(5):
        for _ in range(convs):
            x = w.norm(w.conv(x, bias=True)).relu()
        if stage < 3:
            x = F.max_pool2d(x, 2)
    return x


def shufflenet_v1(w: Weights, x: Tensor) -> Tensor:
    x = w.conv_norm(x).relu()
    for stage, blocks in enumerate((4, 8, 4)):
        for block in range(blocks):
            stride = 1 if block else 2
            out = w.conv_norm(x).relu()
            out = shuffled(out, 3 if stage or block else 1)
            out = w.conv_norm(out, stride).relu()
            out = w.conv_norm(out)
            if block:
                x = (x + out).relu()
            else:
                x = F.avg_pool2d(x, 3, 2, padding=1)
                x = torch.cat([out, x], dim=1).relu()
    return x


def shufflenet_v2(w: Weights, x: Tensor) -> Tensor:
    x = w.conv_norm(x).relu()
    for blocks in (4, 8, 4):
        for block in range(blocks):
            if block:
                kept, out = x.chunk(2, dim=1)
            else:
                kept = w.conv_norm(w.conv_norm(x, 2)).relu()
                out = x
            out = w.conv_norm(w.conv_norm(out).relu(), 1 if block else 2)
            out = w.conv_norm(out).relu()
            x = shuffled(torch.cat([kept, out], dim=1), 2)
    return w.conv_norm(x).relu()


def mobilenet_v2(w: Weights, x: Tensor) -> Tensor:
    x = w.conv_norm(x, 2).relu()
    # Of each block: stride, and whether the input is added.
    for stride, add in ((1, 0), (1, 0), (1, 1), (2, 0), (1, 1), (1, 1),
                        (2, 0), (1, 1), (1, 1), (1, 1), (1, 0), (1, 1),
                        (1, 1), (2, 0), (1, 1), (1, 1), (1, 0)):
        out = w.conv_norm(w.conv_norm(x).relu(), stride).relu()
        out = w.conv_norm(out)
        x = x + out if add else out
    return w.conv_norm(x).relu()


def mobilenet_v1(w: Weights, x: Tensor) -> Tensor:
    x = w.conv_norm(x, 2).relu()
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        x = w.conv_norm(w.conv_norm(x, stride).relu()).relu()
    return x


# One or two members of each family, and the rest of the forward's arguments.
FORWARDS = {
    'resnet14': (cifar_resnet, dict(blocks=2, widens=False)),
    'resnet8x4': (cifar_resnet, dict(blocks=1, widens=True)),
    'wrn_16_1': (wide_resnet, dict(blocks=2, widens=False)),
    'wrn_16_2': (wide_resnet, dict(blocks=2, widens=True)),
    'vgg8': (vgg, dict(convs=1)),
    'vgg13': (vgg, dict(convs=2)),
    'shufflenet_v1': (shufflenet_v1, {}),
    'shufflenet_v2': (shufflenet_v2, {}),
    'mobilenet_v2': (mobilenet_v2, {}),
    'mobilenet_v1': (mobilenet_v1, {}),
}
