"""Random numbers that depend on the epoch and not on what ran before."""
from __future__ import annotations

from functools import partial

import numpy as np
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed every random number generator anew at the start of each epoch.

    The seed is drawn from the run's seed, the epoch and the rank: a run that
    was cut and resumed draws the same augmentations and dropout masks as one
    that was not. Without this hook mmengine restarts all generators on
    resume, and data workers repeat the first epoch's numbers in each epoch.

    Persistent data workers (``persistent_workers=True``) cannot be reached
    once they run: with them, and in iteration-based loops, which are one
    epoch throughout, a resumed run is valid but not the same.
    """

    def before_train(self, runner: Runner) -> None:
        """Say so where persistent workers defeat the purpose."""
        if runner.train_dataloader.persistent_workers:
            runner.logger.warning(
                'train_dataloader.persistent_workers=True: after a resume '
                'the augmentations will differ from those of an '
                'uninterrupted run.')

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process and the workers that the epoch will start."""
        seed = epoch_seed(runner.seed, runner.epoch, get_rank())
        set_random_seed(seed)
        loader = runner.train_dataloader
        init = loader.worker_init_fn
        # A function of the user's own is left alone.
        if isinstance(init, partial) and init.func is worker_init_fn:
            loader.worker_init_fn = partial(
                worker_init_fn, **{
                    **init.keywords, 'seed': seed
                })


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Mix a run's seed, an epoch and a rank into a seed in [0, 2**31).

    In numpy's 32 bits that leaves room for mmengine's worker numbers.
    """
    state = np.random.SeedSequence([seed, epoch, rank]).generate_state(1)
    return int(state[0]) >> 1
