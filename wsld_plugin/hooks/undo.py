"""What a hook changes for a while is as before when that is over."""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.runner import BaseLoop, Runner


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
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Leave the random numbers of Python, numpy and torch as they were."""
    python, array = random.getstate(), np.random.get_state()
    try:
        # By default of all GPUs, which is slow where there are many.
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
