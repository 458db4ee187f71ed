"""What the reference's networks count, and what they compute.

The counts are of a plain-torch transcription of the models of
https://github.com/HobbitLong/RepDistiller (CIFAR, 100 classes, 32 pixels)
and https://github.com/bellymonster/Weighted-Soft-Label-Distillation
(MobileNetV1, 1000 classes, 224 pixels), and of torchvision's other ResNets
for ImageNet. The forwards are functions of a list of weights, so they share
neither modules nor loops with the package.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Parameters and multiply-adds of convolutions and the linear layer.
COUNTS = {
    'resnet18': (11_689_512, 1_814_073_344),
    'resnet34': (21_797_672, 3_663_761_408),
    'resnet50': (25_557_032, 4_089_184_256),
    'mbv1': (4_231_976, 568_740_352),
    'resnet8': (83_892, 12_507_392),
    'resnet14': (181_108, 26_663_168),
    'resnet20': (278_324, 40_818_944),
    'resnet32': (472_756, 69_130_496),
    'resnet44': (667_188, 97_442_048),
    'resnet56': (861_620, 125_753_600),
    'resnet110': (1_736_564, 253_155_584),
    'resnet8x4': (1_233_540, 177_071_104),
    'resnet32x4': (7_433_860, 1_083_040_768),
    'wrn-16-1': (180_916, 26_663_168),
    'wrn-16-2': (703_284, 101_118_464),
    'wrn-40-1': (569_780, 83_286_272),
    'wrn-40-2': (2_255_156, 327_610_880),
    'vgg8': (3_965_028, 96_192_512),
    'vgg13': (9_462_180, 284_936_192),
    'shufflev1': (949_258, 38_691_456),
    'shufflev2': (1_355_528, 44_504_448),
    'mbv2': (812_836, 6_523_648),
}
# Members of the families that no config trains; each ends with 64 channels.
OTHERS = {
    'resnet14': dict(type='CIFARResNet', depth=14),
    'resnet44': dict(type='CIFARResNet', depth=44),
    'wrn-16-1': dict(type='WideResNet', depth=16, widen_factor=1),
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
    'wrn-16-1': (wide_resnet, dict(blocks=2, widens=False)),
    'wrn-16-2': (wide_resnet, dict(blocks=2, widens=True)),
    'vgg8': (vgg, dict(convs=1)),
    'vgg13': (vgg, dict(convs=2)),
    'shufflev1': (shufflenet_v1, {}),
    'shufflev2': (shufflenet_v2, {}),
    'mbv2': (mobilenet_v2, {}),
    'mbv1': (mobilenet_v1, {}),
}
