"""MobileNetV2 for pictures of 32 pixels."""
from __future__ import annotations

from functools import partial

from mmcv.cnn import ConvModule
from mmpretrain.models.backbones.mobilenet_v2 import InvertedResidual
from mmpretrain.registry import MODELS
from torch import nn

from .sequential import SequentialBackbone

_RELU = dict(type='ReLU')


@MODELS.register_module()
class CIFARMobileNetV2(SequentialBackbone):
    """MobileNetV2 that halves the picture four times, not five.

    Beyond the strides it differs from mmpretrain's in its channels, which
    are not rounded to multiples of 8, in ReLU instead of ReLU6, and in a 1x1
    convolution before the first block's depthwise one. ``forward`` takes
    pictures of shape (N, 3, H, W) and returns one tensor of shape
    (N, 1280, H / 16, W / 16), with more channels if ``widen_factor`` is
    above 1.

    Args:
        widen_factor: Multiple of the original's channels, those of the last
            convolution apart when it is below 1. The published tables'
            "MobileNetV2" has 0.5.
        init_cfg: How to initialise; by default as the reference does.

    Raises:
        ValueError: If ``widen_factor`` leaves a layer without channels.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear
    Bottlenecks", 2018, as in ``models/mobilenetv2.py`` (T = 6) of
    https://github.com/HobbitLong/RepDistiller.

    >>> import torch
    >>> network = CIFARMobileNetV2()
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 1280, 2, 2)]
    """

    # Channels, blocks and stride of the stages after the first.
    arch_settings = ((24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1),
                     (160, 3, 2), (320, 1, 1))

    def __init__(self,
                 widen_factor: float = 0.5,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        channels, out_channels = int(32 * widen_factor), int(16 * widen_factor)
        if out_channels < 1:
            raise ValueError('widen_factor must be 1/16 or more, got '
                             f'{widen_factor}')
        conv = partial(ConvModule, norm_cfg=dict(type='BN'), act_cfg=_RELU)
        self.stem = conv(3, channels, 3, stride=2, padding=1)
        self.layers = nn.Sequential(
            nn.Sequential(
                conv(channels, channels, 1),
                conv(channels, channels, 3, padding=1, groups=channels),
                conv(channels, out_channels, 1, act_cfg=None)))
        channels = out_channels
        for width, blocks, stride in self.arch_settings:
            out_channels = int(width * widen_factor)
            for block in range(blocks):
                self.layers.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        stride=stride if block == 0 else 1,
                        expand_ratio=6,
                        act_cfg=_RELU))
                channels = out_channels
        self.last = conv(channels, int(1280 * max(widen_factor, 1)), 1)
