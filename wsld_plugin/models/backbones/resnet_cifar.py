"""ResNets for pictures of 32 pixels."""
from __future__ import annotations

from typing import Any, ClassVar

from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.models.backbones.resnet_cifar import ResNet_CIFAR
from mmpretrain.registry import MODELS


@MODELS.register_module()
class CIFARResNet(ResNet_CIFAR):
    """ResNet of three stages of ``(depth - 2) / 6`` basic blocks.

    ``forward`` takes pictures of shape (N, 3, H, W) and returns one tensor
    of shape (N, 4 * base_channels, H / 4, W / 4). Where the shape changes
    the shortcut is a 1x1 convolution with BatchNorm.

    Args:
        depth: Number of layers: 8, 14, 20, 32, 44, 56 or 110.
        stem_channels: Channels of the first convolution; 32 in the networks
            called 8x4 and 32x4.
        base_channels: Channels of the first stage, doubled in each of the
            next two; 64 in the networks called 8x4 and 32x4.
        zero_init_residual: Whether each block starts as its shortcut. The
            reference's do not.
        **kwargs: Further arguments of mmpretrain's ``ResNet_CIFAR``.

    Raises:
        ValueError: If ``depth`` is none of those.

    Source: He et al., "Deep Residual Learning for Image Recognition", 2016,
    section 4.2; widths, shortcuts and initialisation as in
    ``models/resnet.py`` of https://github.com/HobbitLong/RepDistiller.

    >>> import torch
    >>> network = CIFARResNet(depth=8, stem_channels=32, base_channels=64)
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 256, 8, 8)]
    """

    arch_settings: ClassVar[dict] = {
        6 * blocks + 2: (BasicBlock, (blocks, ) * 3)
        for blocks in (1, 2, 3, 5, 7, 9, 18)
    }

    def __init__(self,
                 depth: int,
                 stem_channels: int = 16,
                 base_channels: int = 16,
                 zero_init_residual: bool = False,
                 **kwargs: Any) -> None:
        if depth not in self.arch_settings:
            raise ValueError('depth must be one of '
                             f'{", ".join(map(str, self.arch_settings))}, '
                             f'got {depth!r}')
        super().__init__(
            depth,
            stem_channels=stem_channels,
            base_channels=base_channels,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2, ),
            zero_init_residual=zero_init_residual,
            **kwargs)
