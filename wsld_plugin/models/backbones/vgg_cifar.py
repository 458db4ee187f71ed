"""VGG for pictures of 32 pixels."""
from __future__ import annotations

import warnings
from typing import Any, ClassVar

from mmpretrain.models.backbones.vgg import VGG
from mmpretrain.registry import MODELS
from torch import nn


@MODELS.register_module()
class CIFARVGG(VGG):
    """VGG with BatchNorm that halves the picture three times, not five.

    ``forward`` takes pictures of shape (N, 3, H, W) and returns one tensor
    of shape (N, 512, H / 8, W / 8).

    Args:
        depth: Number of layers with the classifier's one: 8 or 13. VGG-13
            has ten convolutions here too, its name counts the classifier of
            three layers that the original has.
        **kwargs: Further arguments of mmpretrain's ``VGG``.

    Raises:
        ValueError: If ``depth`` is neither.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for
    Large-Scale Image Recognition", 2015; poolings, biases and initialisation
    as in ``models/vgg.py`` of https://github.com/HobbitLong/RepDistiller.

    >>> import torch
    >>> network = CIFARVGG(depth=8)
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 512, 4, 4)]
    """

    arch_settings: ClassVar[dict] = {
        8: (1, 1, 1, 1, 1),
        13: (2, 2, 2, 2, 2),
    }

    def __init__(self, depth: int, **kwargs: Any) -> None:
        if depth not in self.arch_settings:
            raise ValueError(f'depth must be 8 or 13, got {depth!r}')
        with warnings.catch_warnings():
            # The reference's convolutions have a bias.
            warnings.filterwarnings('ignore', 'Unnecessary conv bias')
            super().__init__(
                depth,
                norm_cfg=dict(type='BN'),
                with_last_pool=False,
                **kwargs)
        # In its place, so that weights keep mmpretrain's names.
        _, end = self.range_sub_modules[3]
        self.features[end - 1] = nn.Identity()
