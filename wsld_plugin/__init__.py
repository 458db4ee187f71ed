"""Weighted Soft Label Distillation (WSLD) for MMRazor on today's PyTorch.

Importing this package registers its parts with mmengine's root registries and
makes mmrazor 1.0.0 importable on the torch that is installed. It imports
neither mmrazor, mmpretrain nor matplotlib.
"""
from . import compat
from .version import __version__

compat.apply()

from . import datasets, hooks, losses, models  # noqa: E402

__all__ = ['__version__', 'compat', 'datasets', 'hooks', 'losses', 'models']
