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
    from mmengine.optim.optimizer import amp_optimizer_wrapper as module
    from mmengine.registry import OPTIM_WRAPPERS
    wrapper = cfg.get('optim_wrapper') or {}
    kind = wrapper.get('type')
    if get_device() == 'cpu' and isinstance(kind, str):
        kind = OPTIM_WRAPPERS.get(kind)
    if get_device() != 'cpu' or not isinstance(kind, type) or not issubclass(
            kind, module.AmpOptimWrapper):
        return
    dtype = wrapper.get('dtype')
    if dtype not in (None, 'bfloat16', torch.bfloat16):
        raise ValueError(
            f'optim_wrapper.dtype is {dtype!r}, but the only device is the '
            "CPU, where mixed precision is 'bfloat16'")
    # A gradient scaler that passes everything through.
    scaler = (partial(torch.amp.GradScaler, device='cpu', enabled=False)
              if hasattr(torch.amp, 'GradScaler') else  # torch >= 2.3
              partial(torch.cuda.amp.GradScaler, enabled=False))
    vars(module).update(is_cuda_available=lambda: True, GradScaler=scaler)
    put_on_record('cpu-amp')
