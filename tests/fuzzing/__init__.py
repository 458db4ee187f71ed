"""Generated inputs, right and wrong, and who judges what comes of them.

An area names its kinds of inputs. Each is a function of a random generator
that makes one input, gives it to the product and says in a word what came of
it; it raises where that is neither the right result nor one clear line.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .cases import Case, one_case
from .configs import configs, plans
from .files import caches, checkpoints, pictures
from .losses import losses

__all__ = ['AREAS', 'one_case']

# Share of all inputs; a config takes the most time.
AREAS: dict[str, tuple[float, Callable[[Path], dict[str, Case]]]] = dict(
    losses=(0.3, losses), checkpoints=(0.25, checkpoints),
    caches=(0.2, caches), pictures=(0.12, pictures), configs=(0.05, configs),
    plans=(0.08, plans))
