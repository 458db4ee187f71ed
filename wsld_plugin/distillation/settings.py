"""The arguments of a call: checked, settled, kept and compared."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import write_atomically
from ..datasets import PictureFolder
from . import recipe
from .schedule import default_dtype
from .search import TRIALS, trial_epochs

# What the machine decides, the first time.
_OF_THE_MACHINE = ('dtype', 'workers', 'cached')
_BY_DEFAULT = ('teacher_epochs', 'size', 'batch_size')
_AT_LEAST = dict(epochs=1, teacher_epochs=1, size=8, batch_size=2, seed=0)


class DistilError(ValueError):
    """A call cannot begin or go on; one line says why."""


def check(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse arguments that no folder could make right.

    Returns a copy, with the teachers as a list and fractions as floats.
    """
    teacher = asked['teacher']
    teachers = [teacher] if isinstance(teacher, str) else [*teacher]
    weights = asked['teacher_weights']
    for name, right, expected in (
        *((name, (asked[name] is None and name in _BY_DEFAULT) or
           (type(asked[name]) is int and asked[name] >= least),
           f'an integer of at least {least}')
          for name, least in _AT_LEAST.items()),
        *((name, asked[name] == 'auto' or _is_positive(asked[name]),
           "'auto' or a positive number") for name in ('tau', 'alpha')),
        ('student', isinstance(asked['student'], str) and asked['student'],
         'the name of a network'),
        ('teacher', teachers and all(isinstance(one, str) and one
                                     for one in teachers),
         'the name of a network, or several'),
        ('combine', asked['combine'] in ('probabilities', 'logits'),
         "'probabilities' or 'logits'"),
        ('teacher_weights',
         weights is None or (len(weights) == len(teachers) and all(
             map(_is_positive, weights))),
         f'a positive number for each of the {len(teachers)} teachers')):
        if not right:
            raise DistilError(
                f'{name} must be {expected}, got {asked[name]!r}')
    # Or 4 and 4.0 would be two calls.
    numbers = {name: float(asked[name]) for name in ('tau', 'alpha')
               if asked[name] != 'auto'}
    return dict(
        asked, **numbers, teacher=teachers,
        teacher_weights=weights and [*map(float, weights)])


def settle(asked: Mapping[str, Any], folder: PictureFolder, processes: int,
           out: Path) -> dict[str, Any]:
    """All arguments with their values, the same whenever a call goes on.

    What ``out``, the call's folder, holds is compared, or the arguments are
    kept there as ``call.json``. A DistilError if it is another call's.
    """
    settled = dict(asked)
    for name, function, *given in (
            ('teacher_epochs', int, asked['epochs']),
            ('size', recipe.default_size, folder, asked['student']),
            ('batch_size', recipe.default_batch_size, folder, processes)):
        if settled[name] is None:
            settled[name] = function(*given)
    settled.update(
        data=str(folder.root.absolute()), pictures=folder.digest,
        processes=processes, dtype=default_dtype(),
        workers=recipe.default_workers(processes))
    epochs = settled['epochs'] + (
        TRIALS * trial_epochs(settled['epochs']) if searches(settled) else 0)
    settled['cached'] = recipe.caching_pays(
        make_recipe(folder, settled, out), epochs, out)
    path = out / 'call.json'
    # With nothing learnt in it, a call may have been a mistake.
    if path.exists() and ((out / 'metrics.json').exists()
                          or any(out.rglob('*.pth'))):
        kept = json.loads(path.read_text())
        for name, value in settled.items():
            if name not in _OF_THE_MACHINE and kept.get(name) != value:
                raise DistilError(_difference(out, name, kept, value))
        return dict(settled, **{name: kept[name] for name in _OF_THE_MACHINE})
    write_atomically(path, json.dumps(settled, indent=1))
    return settled


def searches(settled: Mapping[str, Any]) -> bool:
    """Whether tau or alpha is to be found by trials."""
    return 'auto' in (settled['tau'], settled['alpha'])


def make_recipe(folder: PictureFolder, settled: Mapping[str, Any], out: Path,
                launcher: str = 'none') -> recipe.Recipe:
    """The choices of a call that its configs are made of."""
    given = ('student', 'epochs', 'teacher_epochs', 'batch_size', 'size',
             'flip', 'seed', 'dtype', 'processes', 'workers')
    return recipe.Recipe(
        folder=folder, lists=out / 'data', launcher=launcher,
        **{name: settled[name] for name in given})


def _difference(out: Path, name: str, kept: Mapping[str, Any],
                value: Any) -> str:
    advice = 'choose another work_dir, or remove the folder'
    if name == 'pictures':
        return (f'{out} holds what was learnt from other pictures: those in '
                f'{kept["data"]} have changed since; {advice}')
    return (f'{out} holds a call with {name}={kept.get(name)!r}, but '
            f'{name}={value!r} is asked for: {advice}')


def _is_positive(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and 0 < value < math.inf)
