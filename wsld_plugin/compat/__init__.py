"""The only place that patches others' packages or names a version range.

Every fix is as small as its cause, is put in force only where the cause is
present, and is listed by :func:`fixes_in_force`.
"""
from __future__ import annotations

from . import checkpoint, mmengine, mmrazor
from .fix import Fix

__all__ = ['Fix', 'apply', 'fixes_in_force']

_in_force: tuple[Fix, ...] | None = None


def apply() -> None:
    """Put in force the fixes that the installed versions need, once."""
    global _in_force
    if _in_force is None:
        _in_force = (*mmengine.apply(), *checkpoint.apply(),
                     *mmrazor.apply())


def fixes_in_force() -> tuple[Fix, ...]:
    """Fixes that :func:`apply` found necessary here.

    Returns:
        One record per fix, empty where the installed packages need none
        (torch 1.13 with ``setuptools<82`` and ``mmcv 2.1``, say).
    """
    return _in_force or ()
