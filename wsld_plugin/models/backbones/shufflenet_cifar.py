"""ShuffleNets for pictures of 32 pixels.

Their first convolution is 1x1 and nothing is pooled before the first stage.
Both are initialised as torch does, like the reference.
"""
from __future__ import annotations

import torch
from mmengine.model import BaseModule
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.models.backbones.shufflenet_v2 import InvertedResidual
from mmpretrain.models.utils import channel_shuffle
from mmpretrain.registry import MODELS
from torch import Tensor, nn

_GROUPS = 3
_BLOCKS = (4, 8, 4)
# torch's own for convolutions, needed where others initialise their layers.
_AS_TORCH = dict(
    type='Kaiming',
    layer='Conv2d',
    a=5**0.5,
    mode='fan_in',
    nonlinearity='leaky_relu',
    distribution='uniform')


def _pointwise(in_channels: int,
               out_channels: int,
               groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels))


class ShuffleUnit(BaseModule):
    """Grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolution.

    mmpretrain's unit shuffles after the depthwise convolution and has no
    ReLU there; this is the reference's.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; with ``stride`` 2 the pooled
            input is part of it.
        stride: 1, which adds the input, or 2, which appends it.
        groups: Groups of the first convolution, 1 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int,
                 groups: int) -> None:
        super().__init__()
        self.groups = groups
        if stride == 2:
            out_channels -= in_channels
        middle = out_channels // 4
        self.compress = _pointwise(in_channels, middle, groups)
        self.depthwise = nn.Sequential(
            nn.Conv2d(
                middle,
                middle,
                3,
                stride,
                padding=1,
                groups=middle,
                bias=False), nn.BatchNorm2d(middle))
        self.expand = _pointwise(middle, out_channels, _GROUPS)
        self.pool = (
            nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Join the convolutions and the input."""
        out = self.relu(self.compress(x))
        out = self.relu(self.depthwise(channel_shuffle(out, self.groups)))
        out = self.expand(out)
        out = (
            out + x if self.pool is None else
            torch.cat([out, self.pool(x)], dim=1))
        return self.relu(out)


@MODELS.register_module()
class CIFARShuffleNetV1(BaseBackbone):
    """ShuffleNetV1 with three groups.

    Args:
        init_cfg: How to initialise; by default as the reference does.

    Source: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional
    Neural Network for Mobile Devices", 2018, as in ``models/ShuffleNetv1.py``
    of https://github.com/HobbitLong/RepDistiller.

    >>> network = CIFARShuffleNetV1()
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 960, 4, 4)]
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or _AS_TORCH)
        channels = 24
        self.stem = _pointwise(3, channels)
        self.relu = nn.ReLU(inplace=True)
        self.layers = nn.Sequential()
        for stage, (out_channels, blocks) in enumerate(
                zip((240, 480, 960), _BLOCKS)):
            for block in range(blocks):
                self.layers.append(
                    ShuffleUnit(
                        channels,
                        out_channels,
                        stride=2 if block == 0 else 1,
                        groups=1 if stage == block == 0 else _GROUPS))
                channels = out_channels

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Features of pictures.

        Args:
            x: Shape (N, 3, H, W), floating point.

        Returns:
            One tensor of shape (N, 960, H / 8, W / 8).
        """
        return (self.layers(self.relu(self.stem(x))), )


@MODELS.register_module()
class CIFARShuffleNetV2(BaseBackbone):
    """ShuffleNetV2 of width 1.

    Args:
        init_cfg: How to initialise; by default as the reference does.

    Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN
    Architecture Design", 2018, as in ``models/ShuffleNetv2.py`` of
    https://github.com/HobbitLong/RepDistiller.

    >>> network = CIFARShuffleNetV2()
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 1024, 4, 4)]
    """

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or _AS_TORCH)
        channels = 24
        self.stem = _pointwise(3, channels)
        self.relu = nn.ReLU(inplace=True)
        self.layers = nn.Sequential()
        for out_channels, blocks in zip((116, 232, 464), _BLOCKS):
            for block in range(blocks):
                self.layers.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        stride=2 if block == 0 else 1))
                channels = out_channels
        self.last = _pointwise(channels, 1024)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Features of pictures.

        Args:
            x: Shape (N, 3, H, W), floating point.

        Returns:
            One tensor of shape (N, 1024, H / 8, W / 8).
        """
        x = self.layers(self.relu(self.stem(x)))
        return (self.relu(self.last(x)), )
