"""WideResNets for pictures of 32 pixels."""
from __future__ import annotations

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .sequential import SequentialBackbone


class PreActBlock(BaseModule):
    """Two 3x3 convolutions, each after its BatchNorm and ReLU.

    Where the number of channels changes, the shortcut is a 1x1 convolution
    of the activated input; elsewhere it is the input as it came.
    """

    def __init__(self, in_channels: int, out_channels: int,
                 stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None if in_channels == out_channels else nn.Conv2d(
            in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the two convolutions to the shortcut."""
        out = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.relu(self.bn2(self.conv1(out)))
        return self.conv2(out) + shortcut


@MODELS.register_module()
class WideResNet(SequentialBackbone):
    """WideResNet-depth-widen_factor without dropout.

    Three stages of ``(depth - 4) / 6`` blocks with 16, 32 and 64 times
    ``widen_factor`` channels, the second and third halving the picture, then
    BatchNorm and ReLU. ``forward`` takes pictures of shape (N, 3, H, W) and
    returns one tensor of shape (N, 64 * widen_factor, H / 4, W / 4).

    Args:
        depth: Number of layers, 6n + 4: 16, 40, ...
        widen_factor: Multiple of the narrowest network's channels.
        init_cfg: How to initialise; by default as the reference does.

    Raises:
        ValueError: If ``depth`` is not 6n + 4, or an argument is too small.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", 2016; widths,
    shortcuts and initialisation as in ``models/wrn.py`` of
    https://github.com/HobbitLong/RepDistiller.

    >>> import torch
    >>> network = WideResNet(depth=16, widen_factor=2)
    >>> [tuple(x.shape) for x in network(torch.zeros(1, 3, 32, 32))]
    [(1, 128, 8, 8)]
    """

    def __init__(self,
                 depth: int,
                 widen_factor: int = 1,
                 init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(
                f'depth must be 6n + 4 (10, 16, 22, ...), got {depth}')
        if widen_factor < 1:
            raise ValueError(
                f'widen_factor must be 1 or more, got {widen_factor}')
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        in_channels = 16
        for stage in range(3):
            out_channels = 16 * widen_factor * 2**stage
            blocks = []
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(PreActBlock(in_channels, out_channels, stride))
                in_channels = out_channels
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
