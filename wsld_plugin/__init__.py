"""Weighted Soft Label Distillation (WSLD) for MMRazor on today's PyTorch.

Importing this package registers its parts with mmengine's root registries and
makes mmrazor 1.0.0 importable on the torch that is installed. It imports
neither mmrazor, mmpretrain nor matplotlib: the networks that build on
mmpretrain's are registered as soon as those are, and ``distil`` is imported
when it is asked for.
"""
from types import ModuleType
from typing import Any

from . import compat
from .compat.import_hook import after_import
from .version import __version__

compat.apply()

from . import caching, datasets, hooks, losses, models  # noqa: E402

__all__ = [
    '__version__', 'caching', 'compat', 'datasets', 'distil', 'hooks',
    'losses', 'models'
]


def __getattr__(name: str) -> Any:
    if name != 'distil':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .distillation import distil
    return distil


def _register_backbones(_: ModuleType) -> None:
    from .models import backbones  # noqa: F401


after_import('mmpretrain.models', _register_backbones)
