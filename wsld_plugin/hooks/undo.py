"""What a hook changes for a while is as before when that is over."""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.runner import BaseLoop, Runner
from torch import nn


def train_within(runner: Runner, context: AbstractContextManager) -> None:
    """Let the training loop run inside a context; without one do nothing."""
    loop = getattr(runner, '_train_loop', None)
    if not isinstance(loop, BaseLoop):
        return
    run = loop.run

    def run_within() -> Any:
        vars(loop).pop('run', None)
        with context:
            return run()

    vars(loop)['run'] = run_within


@contextmanager
def random_state_kept(network: nn.Module) -> Iterator[None]:
    """Leave the random numbers that a network draws as they were."""
    python, array = random.getstate(), np.random.get_state()
    # By default of all GPUs, which is slow where there are many.
    gpus = {one.device for one in network.parameters() if one.is_cuda}
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
