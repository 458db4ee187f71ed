"""MobileNetV1 for ImageNet."""
from __future__ import annotations

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn


def _conv(in_channels: int,
          out_channels: int,
          kernel_size: int,
          stride: int = 1,
          groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True)
    ]


@MODELS.register_module()
class MobileNetV1(BaseBackbone):
    """MobileNetV1 of width 1: a convolution and 13 depthwise-separable ones.

    Each depthwise 3x3 and each 1x1 convolution is followed by BatchNorm and
    ReLU.

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
        self.layers = nn.Sequential(
            nn.Sequential(*_conv(3, channels, 3, stride=2)))
        for out_channels, stride in self.arch_settings:
            self.layers.append(
                nn.Sequential(
                    *_conv(channels, channels, 3, stride, groups=channels),
                    *_conv(channels, out_channels, 1)))
            channels = out_channels

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Features of pictures.

        Args:
            x: Shape (N, 3, H, W), floating point.

        Returns:
            One tensor of shape (N, 1024, H / 32, W / 32).
        """
        return (self.layers(x), )
