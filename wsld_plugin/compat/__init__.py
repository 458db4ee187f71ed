"""The only place that patches others' packages or names a version range.

Every fix is as small as its cause, is put in force only where the cause is
present, and is listed by :func:`fixes_in_force`. :func:`apply` runs when
``wsld_plugin`` is imported; the rest is for programs to call.
"""
from __future__ import annotations

import functools

from . import checkpoint, mmengine, mmpretrain, mmrazor, names, teachers
from .amp import prepare_amp
from .distributed import prepare_distributed
from .fix import Fix, fixes_in_force
from .noise import quiet

__all__ = [
    'Fix', 'apply', 'fixes_in_force', 'prepare_amp', 'prepare_distributed',
    'quiet'
]


@functools.cache
def apply() -> None:
    """Put in force the fixes that the installed versions need, once."""
    for part in (mmengine, checkpoint, mmpretrain, mmrazor, teachers, names):
        part.apply()
