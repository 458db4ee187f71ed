"""How a network learns: its optimizer, rates, warm-up and precision."""
from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS
from mmengine.utils import digit_version
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models import NetworkError
from ..models.building import without_weights

# Learning rates for batches of 64: of a network with random weights, of one
# with trained weights, and of a new last layer on features that stay.
_SGD = dict(scratch=0.05, all=0.01)
_ADAMW = dict(scratch=5e-4, all=5e-5, head=1e-3)
# Batches beyond eight times that do not learn faster.
_BATCH, _LARGEST_BATCH = 64, 512
# All weights in one kernel, which torch has for the CPU, too, from here on:
# with small pictures the default takes a quarter of a step.
_FUSED = digit_version(torch.__version__) >= digit_version('2.4')


class Traits(NamedTuple):
    """What a training must know of a network.

    Attributes:
        adam: Whether SGD is no optimizer for it: it has LayerNorm, as
            networks with attention do, or no BatchNorm.
        channels_last: Whether it takes feature maps in that layout.
    """

    adam: bool
    channels_last: bool


def network_traits(model: Mapping[str, Any], size: int) -> Traits:
    """Build a network of mmpretrain's without its weights, and try it.

    Raises:
        NetworkError: If it takes no pictures of ``size`` pixels.
    """
    return _traits(json.dumps(without_weights(model), sort_keys=True), size)


@lru_cache(maxsize=64)
def _traits(model: str, size: int) -> Traits:
    pictures = torch.zeros(2, 3, size, size)
    with torch.random.fork_rng([]), torch.no_grad():
        try:
            network = MODELS.build(
                dict(json.loads(model), _scope_='mmpretrain'))
            network.eval()(pictures, mode='tensor')
        except (AssertionError, IndexError, RuntimeError, TypeError,
                ValueError) as error:
            raise NetworkError(
                f'the network takes no pictures of {size} x {size} pixels: '
                f'{" ".join(str(error).split())}') from error
        norms = {
            kind
            for one in network.modules() for kind in (nn.LayerNorm, _BatchNorm)
            if isinstance(one, kind)
        }
        layout: Any = torch.channels_last
        try:
            network.to(memory_format=layout)(
                pictures.to(memory_format=layout), mode='tensor')
        except RuntimeError as error:
            if 'view size is not' not in str(error):
                raise
            layout = None
    return Traits(norms != {_BatchNorm}, layout is not None)


def schedule(adam: bool, phase: str, epochs: int, steps: int, batch: int,
             dtype: str) -> dict[str, Any]:
    """Settings of a training: warm-up, then half a cosine down to 0.

    Args:
        adam: Of the network's traits. A last layer alone gets AdamW, too,
            for its features have any scale.
        phase: ``'scratch'``; ``'all'``, from trained weights; or ``'head'``.
        epochs: Length of the training.
        steps: Iterations of an epoch.
        batch: Pictures of an iteration, of all processes together.
        dtype: ``'float32'``, or that of mixed precision.

    Returns:
        ``optim_wrapper``, ``param_scheduler`` and ``train_cfg``, with at most
        twelve validations.
    """
    adam = adam or phase == 'head'
    more = min(batch, _LARGEST_BATCH) / _BATCH
    # Adam's steps do not grow with the gradient: the root is its rule.
    rate = _ADAMW[phase] * more**0.5 if adam else _SGD[phase] * more
    optimizer: dict[str, Any] = dict(
        type='AdamW', weight_decay=0.05) if adam else dict(
            type='SGD',
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4 if phase == 'scratch' else 1e-4)
    if _FUSED:
        optimizer['fused'] = True
    wrapper: dict[str, Any] = dict(
        type='OptimWrapper',
        optimizer=dict(optimizer, lr=float(f'{rate:.3g}')))
    if adam:
        wrapper.update(
            clip_grad=dict(max_norm=1.0),
            paramwise_cfg=dict(
                norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0))
    if dtype != 'float32':
        wrapper.update(
            type='AmpOptimWrapper',
            dtype=dtype,
            loss_scale='dynamic' if dtype == 'float16' else 1.0)
    total = epochs * steps
    # mmengine's LinearLR needs two steps; few steps are too short for any.
    warm = max(2, total // (10 if adam else 20)) if total > 8 else 0
    rising = dict(
        type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=warm)
    falling = dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warm,
        end=total,
        T_max=total - warm,
        eta_min=0.0)
    return dict(
        optim_wrapper=wrapper,
        param_scheduler=[rising, falling] if warm else [falling],
        train_cfg=dict(
            by_epoch=True, max_epochs=epochs, val_interval=-(-epochs // 12)))


def default_dtype() -> str:
    """The fastest precision that this machine trains well in.

    On a GPU bfloat16, or float16 if it lacks that; on the CPU bfloat16 if it
    has instructions for it, else float32.
    """
    if torch.cuda.is_available():
        # torch.cuda.is_bf16_supported is true of GPUs that imitate it, too.
        native = torch.version.hip or torch.cuda.get_device_capability()[0] > 7
        return 'bfloat16' if native else 'float16'
    try:
        flags = {*Path('/proc/cpuinfo').read_text().split()}
    except OSError:
        return 'float32'
    # Without them torch imitates it, slowly.
    return 'bfloat16' if flags & {'amx_bf16', 'avx512_bf16'} else 'float32'
