"""Lay weights out channels last, with all that has to lie as they do."""
from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# What DDP remembers of its first step, as before that.
_UNUSED = dict(
    _static_graph_delay_allreduce_enqueued=False, num_iterations=0)


def use_channels_last(model: nn.Module,
                      optimizers: list[torch.optim.Optimizer],
                      undo: ExitStack) -> str:
    """Lay the weights of 2-dimensional convolutions out channels last.

    So is what optimizers keep for them, for fused ones take no note of
    strides. DDP gets its reduction anew, which would else copy gradients in
    the order that it met first: wrong in every step with
    ``find_unused_parameters``, without in the first.

    Returns:
        What was done, or why nothing was.
    """
    if isinstance(model, DistributedDataParallel) and (
            'reducer' not in vars(model)
            or model._get_ddp_logging_data().get('comm_hook')
            or model.process_group != torch.distributed.group.WORLD):
        return ('not channels last: DDP has parts, a communication hook or a '
                'process group of its own')
    where = Counter(one.data_ptr() for one in model.parameters())
    weights = [
        one for one in model.parameters()
        # Two that share their memory go on doing so.
        if one.dim() == 4 and one.is_contiguous() and where[one.data_ptr()] < 2
    ]
    undo.callback(_lay_out, model, weights, optimizers,
                  torch.contiguous_format)
    _lay_out(model, weights, optimizers, torch.channels_last)
    return 'channels last'


def _lay_out(model: nn.Module, weights: list[nn.Parameter],
             optimizers: list[torch.optim.Optimizer],
             layout: torch.memory_format) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=layout)
        if weight.grad is not None:
            weight.grad = weight.grad.contiguous(memory_format=layout)
        for optimizer in optimizers:
            state: dict[str, Any] = optimizer.state.get(weight, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[key] = value.contiguous(memory_format=layout)
    if isinstance(model, DistributedDataParallel):
        # As after unpickling. It needs no word from the other processes, so
        # that it may happen in one that has failed.
        model.__setstate__({
            key: _UNUSED.get(key, value)
            for key, value in model.__getstate__().items()
        })
