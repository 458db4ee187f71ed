"""MobileNetV1 for ImageNet."""
from __future__ import annotations

from mmpretrain.registry import MODELS
from torch import nn

from .sequential import SequentialBackbone, conv_bn


@MODELS.register_module()
class MobileNetV1(SequentialBackbone):
    """MobileNetV1 of width 1: a convolution and 13 depthwise-separable ones.

    Each depthwise 3x3 and each 1x1 convolution is followed by BatchNorm and
    ReLU. ``forward`` takes pictures of shape (N, 3, H, W) and returns one
    tensor of shape (N, 1024, H / 32, W / 32).

    Args:
        init_cfg: How to initialise; by default torch's own way, as in WSLD's
            published code.

    Source: Howard et al., "MobileNets: Efficient Convolutional Neural
    Networks for Mobile Vision Applications", 2017, as in
    ``models/MobileNet.py`` of
    https://github.com/bellymonster/Weighted-Soft-Label-Distillation.

    >>> import torch
    >>> network = MobileNetV1()
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 224, 224))]
    [(1, 1024, 7, 7)]
    """

    # Channels and stride of the depthwise-separable convolutions.
    arch_settings = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1),
                     (512, 2), (512, 1), (512, 1), (512, 1), (512, 1),
                     (512, 1), (1024, 2), (1024, 1))

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg)
        channels = 32
        self.layers = nn.Sequential(conv_bn(3, channels, 3, stride=2))
        for out_channels, stride in self.arch_settings:
            self.layers.append(
                nn.Sequential(
                    *conv_bn(channels, channels, 3, stride, groups=channels),
                    *conv_bn(channels, out_channels)))
            channels = out_channels
