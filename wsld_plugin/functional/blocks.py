"""Work on a batch piece by piece, so that what lies between stays small."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
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

    Where autograd records, ``torch.compile`` traces or ``torch.func``
    transforms, the function is called once with everything.

    Args:
        function: Works on each row by itself; a row are the logits of one
            sample or pixel. Its result is ``(N, *)`` or ``(N, C, *)``.
        logits: ``(N, C)`` or ``(N, C, *)``.
        others: Tensors ``(N, C, *)`` or ``(N, *)``, or None.

    Returns:
        The function's result; one that is shaped like the logits has their
        memory format, too.
    """
    if is_traced() or torch.is_grad_enabled():
        return function(logits, *others)
    block = _DEVICE_BLOCK
    if logits.device.type == 'cpu':
        block = _CPU_BLOCK * torch.get_num_threads()
    if logits.numel() <= block:
        return function(logits, *others)
    result: Any = None
    for at in _positions(logits.shape, block):
        part = function(*(_cut(x, at) for x in (logits, *others)))
        if result is None:
            result = (torch.empty_like(logits, dtype=part.dtype)
                      if part.dim() == logits.dim() else part.new_empty(
                          logits[:, 0].shape))
        _cut(result, at).copy_(part)  # type: ignore[union-attr]
        del part  # The next block takes its memory, still in the cache.
    return result


def _positions(shape: torch.Size,
               block: int) -> Iterator[tuple[slice, ...]]:
    """Where the blocks of at most ``block`` numbers are, classes whole."""
    inner = shape.numel()
    ranges = []
    for dim, size in enumerate(shape):
        if dim == 1:
            ranges.append([slice(None)])
            continue
        inner //= size
        step = min(size, max(1, block // inner))
        ranges.append([slice(i, i + step) for i in range(0, size, step)])
    return itertools.product(*ranges)


def _cut(tensor: Optional[Tensor],
         at: tuple[slice, ...]) -> Optional[Tensor]:
    """The block of a tensor with or without classes."""
    if tensor is None:
        return None
    return tensor[at if tensor.dim() == len(at) else at[:1] + at[2:]]
