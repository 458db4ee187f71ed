"""What backbones of layers one after the other are made of."""
from __future__ import annotations

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn


class SequentialBackbone(BaseBackbone):
    """Backbone that runs its children in the order they were added in."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Features of pictures, ``(N, 3, H, W)`` and floating point."""
        for layer in self.children():
            x = layer(x)
        return (x, )


def conv_bn(in_channels: int,
            out_channels: int,
            kernel_size: int = 1,
            stride: int = 1,
            groups: int = 1,
            relu: bool = True) -> nn.Sequential:
    """Convolution without bias and BatchNorm, and ReLU if ``relu``."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False), nn.BatchNorm2d(out_channels),
        *([nn.ReLU(inplace=True)] if relu else []))
