"""ShuffleNets for pictures of 32 pixels.

Their first convolution is 1x1 and nothing is pooled before the first stage.
Both are initialised as torch does, like the reference.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.model import BaseModule
from mmpretrain.models.backbones.shufflenet_v2 import InvertedResidual
from mmpretrain.models.utils import channel_shuffle
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..networks import as_torch
from .sequential import SequentialBackbone, conv_bn

_GROUPS = 3
_CHANNELS = 24  # Of the first convolution.

def _blocks(*widths: int) -> Iterator[tuple[int, int, int]]:
    """Channels in and out and stride of the blocks of the three stages."""
    channels = _CHANNELS
    for width, blocks in zip(widths, (4, 8, 4)):
        for stride in (2, *[1] * (blocks - 1)):
            yield channels, width, stride
            channels = width


class ShuffleUnit(BaseModule):
    """Grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolution.

    mmpretrain's unit shuffles after the depthwise convolution and has no
    ReLU there; this is the reference's. Stride 1 adds the input, stride 2
    appends it pooled, as part of ``out_channels``. ``groups`` are those of
    the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int,
                 groups: int) -> None:
        super().__init__()
        self.groups = groups
        if stride == 2:
            out_channels -= in_channels
        middle = out_channels // 4
        self.compress = conv_bn(in_channels, middle, groups=groups)
        self.depthwise = conv_bn(middle, middle, 3, stride, groups=middle)
        self.expand = conv_bn(
            middle, out_channels, groups=_GROUPS, relu=False)
        self.pool = (
            nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Join the convolutions and the input."""
        out = channel_shuffle(self.compress(x), self.groups)
        out = self.expand(self.depthwise(out))
        out = (
            out + x if self.pool is None else
            torch.cat([out, self.pool(x)], dim=1))
        return self.relu(out)


@MODELS.register_module()
class CIFARShuffleNetV1(SequentialBackbone):
    """ShuffleNetV1 with three groups.

    ``forward`` takes pictures of shape (N, 3, H, W) and returns one tensor
    of shape (N, 960, H / 8, W / 8).

    Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional
    Neural Network for Mobile Devices", 2018, as in ``models/ShuffleNetv1.py``
    of https://github.com/HobbitLong/RepDistiller.

    >>> network = CIFARShuffleNetV1()
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 960, 4, 4)]
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or as_torch('Conv2d'))
        self.stem = conv_bn(3, _CHANNELS)
        self.layers = nn.Sequential(
            *(ShuffleUnit(*block, groups=_GROUPS if index else 1)
              for index, block in enumerate(_blocks(240, 480, 960))))


@MODELS.register_module()
class CIFARShuffleNetV2(SequentialBackbone):
    """ShuffleNetV2 of width 1; ``forward`` returns (N, 1024, H / 8, W / 8).

    Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN
    Architecture Design", 2018, as in ``models/ShuffleNetv2.py`` of
    https://github.com/HobbitLong/RepDistiller.

    >>> network = CIFARShuffleNetV2()
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 1024, 4, 4)]
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or as_torch('Conv2d'))
        self.stem = conv_bn(3, _CHANNELS)
        self.layers = nn.Sequential(
            *(InvertedResidual(*block) for block in _blocks(116, 232, 464)))
        self.last = conv_bn(464, 1024)
