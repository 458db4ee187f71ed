"""Work on a batch piece by piece, so that what lies between stays small."""
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from .inputs import is_traced

# Numbers of a block: on a CPU so few that they stay in a core's cache through
# the operations on them, elsewhere enough to hide the launches.
_CPU_BLOCK = 2**17
_DEVICE_BLOCK = 2**22


def by_block(function: Callable[..., Tensor], logits: Tensor,
             *others: Optional[Tensor]) -> Tensor:
    """``function(logits, *others)``, computed block by block.

    The function treats each row, the logits of one sample or pixel, by
    itself. Where autograd records, ``torch.compile`` traces or ``torch.func``
    transforms, it is called once with everything.

    Args:
        function: Gives ``(N, *)``, or ``(N, C, *)``.
        logits: ``(N, C)`` or ``(N, C, *)``.
        others: Tensors of the logits' shape or ``(N, *)``, or None.
    """
    if is_traced() or torch.is_grad_enabled():
        return function(logits, *others)
    positions = block_positions(logits)
    if len(positions) < 2:
        return function(logits, *others)
    result: Any = None
    for at in positions:
        part = function(*(cut(x, at) for x in (logits, *others)))
        if result is None:
            like = logits if part.dim() == logits.dim() else logits[:, 0]
            result = torch.empty_like(like, dtype=part.dtype)
        cut(result, at).copy_(part)
        del part  # The next block takes its memory, still in the cache.
    return result


def block_positions(logits: Tensor) -> list[tuple[slice, ...]]:
    """Where the blocks of logits ``(N, C, *)`` are, with all their classes."""
    block = _DEVICE_BLOCK
    if logits.device.type == 'cpu':
        block = _CPU_BLOCK * torch.get_num_threads()
    inner = logits.numel()
    if inner <= block:
        return [(slice(None), ) * logits.dim()]
    ranges = []
    for dim, size in enumerate(logits.shape):
        step = size
        if dim != 1:
            inner //= size
            step = min(size, max(1, block // inner))
        ranges.append([slice(i, i + step) for i in range(0, size, step)])
    return [*itertools.product(*ranges)]


def cut(tensor: Any, at: tuple[slice, ...]) -> Any:
    """The block of a tensor with or without classes, or of None."""
    if tensor is None:
        return None
    return tensor[at if tensor.dim() == len(at) else at[:1] + at[2:]]
