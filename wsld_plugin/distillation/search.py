"""Choose tau and alpha by a few short trainings, judged on val."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .processes import on_first
from .trainings import Training

TRIALS = 6
# From sharp to flat answers of the teacher, and from a weak to a strong
# pull; the first trial is in the middle.
_RANGES = dict(tau=(1.0, 16.0), alpha=(0.25, 4.0))
_MIDDLE = dict(tau=4.0, alpha=1.0)


class Choice(NamedTuple):
    """What :func:`choose` found; trials have tau, alpha and accuracy in %."""

    tau: float
    alpha: float
    trials: pd.DataFrame | None


def trial_epochs(epochs: int) -> int:
    """Length of a trial: a fifth of the training, 3 to 6 epochs if it has.

    After one epoch all students are too bad for a choice: on 898 digits they
    were at 10 to 28% there, and the best of them was not the best later.
    """
    return min(max(epochs // 5, 3), 6, epochs)


def choose(train: Callable[[float, float], Training], tau: float | str,
           alpha: float | str, seed: int) -> Choice:
    """Try settings and take the one with the highest val accuracy.

    Values that are ``'auto'`` are tried, others stay.
    The first trial is tau 4, alpha 1; the others are a scrambled Halton
    sequence in the logarithms: with so few trials, points that cover the
    ranges evenly say more than a model of the six would. They depend on the
    seed alone, so that a search that was cut finds its trials again. Of
    equal trials the first is taken.
    """
    values: dict[str, Any] = dict(tau=tau, alpha=alpha)
    free = [name for name in values if values[name] == 'auto']
    rows = []
    for point in [None, *_points(len(free), seed)]:
        for number, name in enumerate(free):
            low, high = _RANGES[name]
            values[name] = _MIDDLE[name] if point is None else float(
                f'{low * (high / low)**point[number]:.2g}')
        run = train(**values)  # type: ignore[call-arg]
        accuracy = on_first(lambda run=run: run.result['accuracy'])
        rows.append(dict(values, accuracy=accuracy))
    trials = pd.DataFrame(rows)
    best = trials.loc[trials.accuracy.idxmax()]
    return Choice(float(best.tau), float(best.alpha), trials)


def _points(dimensions: int, seed: int) -> Any:
    """All but the first trial, in [0, 1); the same in all processes."""
    from scipy.stats import qmc
    generator = np.random.default_rng(seed)
    return qmc.Halton(dimensions, seed=generator).random(TRIALS - 1)
