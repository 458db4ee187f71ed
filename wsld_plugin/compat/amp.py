"""Mixed precision where the only device is the CPU."""
from __future__ import annotations

from functools import partial

import torch
from mmengine.config import Config
from mmengine.device import get_device

from .fix import put_on_record


def prepare_amp(cfg: Config) -> None:
    """Let a config with mmengine's ``AmpOptimWrapper`` train on the CPU.

    The CPU's mixed precision is bfloat16, which needs no loss scaling:
    ``loss_scale`` is then without effect. With another device, or another
    ``optim_wrapper``, nothing is done.

    Args:
        cfg: Config with ``optim_wrapper``; not changed.

    Raises:
        ValueError: If the wrapper asks for another precision than bfloat16
            and the only device is the CPU.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if get_device() != 'cpu' or not _is_amp(wrapper.get('type')):
        return
    dtype = wrapper.get('dtype')
    if dtype not in (None, 'bfloat16', torch.bfloat16):
        raise ValueError(
            f'optim_wrapper.dtype is {dtype!r}, but the only device is the '
            "CPU, where mixed precision is 'bfloat16'")
    from mmengine.optim.optimizer import amp_optimizer_wrapper as module
    module.__dict__['is_cuda_available'] = lambda: True
    module.__dict__['GradScaler'] = _disabled_scaler()
    put_on_record('cpu-amp')


def _is_amp(kind: object) -> bool:
    from mmengine.optim import AmpOptimWrapper
    from mmengine.registry import OPTIM_WRAPPERS
    if isinstance(kind, str):
        kind = OPTIM_WRAPPERS.get(kind)
    return isinstance(kind, type) and issubclass(kind, AmpOptimWrapper)


def _disabled_scaler() -> partial:
    """A gradient scaler that passes everything through."""
    if hasattr(torch.amp, 'GradScaler'):  # torch >= 2.3
        return partial(torch.amp.GradScaler, device='cpu', enabled=False)
    return partial(torch.cuda.amp.GradScaler, enabled=False)
