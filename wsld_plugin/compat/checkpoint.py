"""mmengine's checkpoints, loaded without executing what a file says."""
from __future__ import annotations

import functools
import os
import pickle
import re
import threading
from _codecs import encode
from collections import Counter
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

from .fix import put_on_record
from .import_hook import after_import

_TRUST = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# The statistics that mmengine registers, and pickles by reference.
_STATISTICS = ('min', 'max', 'current', 'mean')
# In what is said of a type that is not known, or known as dangerous.
_REFUSED_GLOBAL = re.compile(
    r'GLOBAL (\S+) (?:was not an allowed|whose module)')
# Kinds of number that a logged value may have.
_DTYPE_CODES = '?bhilqBHILQefd'
_LOADING = threading.RLock()
# Whether a thread is loading a checkpoint: others load what they trust.
_THREAD = threading.local()


def apply() -> None:
    """Let mmengine load what it writes, and nothing that runs code."""
    if digit_version(torch.__version__) >= digit_version('2.6.0'):
        torch.serialization.add_safe_globals(
            [(found, name) for name, found in _written_by_mmengine().items()])
    after_import('mmengine.runner.checkpoint', _load_weights_only)
    put_on_record('mmengine-checkpoints')


def _written_by_mmengine() -> dict[str, Any]:
    """What may be referred to, by name, also in files of numpy 1."""
    array = np.zeros(1)
    functions = dict(
        _reconstruct=array.__reduce__()[0], scalar=array[0].__reduce__()[0])
    kinds = {type(np.dtype(code)) for code in _DTYPE_CODES}
    return {
        'builtins.getattr': _statistic,
        **{
            f'numpy.{core}.multiarray.{name}': function
            for core in ('core', '_core')
            for name, function in functions.items()
        },
        **{
            f'{kind.__module__}.{kind.__name__}': kind
            for kind in (HistoryBuffer, np.ndarray, np.dtype, *kinds,
                         # Which older versions of torch do not list.
                         Counter, bytearray, complex, set, encode,
                         torch.device)
        },
    }


def _statistic(owner: object, name: str) -> Callable[..., Any]:
    """What ``getattr`` may be in a checkpoint: a HistoryBuffer's statistic.

    Raises:
        pickle.UnpicklingError: For every other attribute or owner.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(
            'GLOBAL builtins.getattr was not an allowed global, but for the '
            f'statistics of HistoryBuffer; asked for {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


class _Unpickler(pickle.Unpickler):
    """Knows the types that torch and mmengine write, and no other.

    In a thread that loads no checkpoint it is Python's.
    """

    def find_class(self, module: str, name: str) -> Any:
        if not getattr(_THREAD, 'loading', False):
            return super().find_class(module, name)
        from torch import _weights_only_unpickler as torchs
        allowed = {**torchs._get_allowed_globals(), **_written_by_mmengine()}
        # By the name that it had in Python 2, whose format torch writes.
        found = f'{module}.{name}'.replace('__builtin__', 'builtins')
        if found not in allowed:
            raise pickle.UnpicklingError(
                f'GLOBAL {found} was not an allowed global')
        return allowed[found]


_RESTRICTED = SimpleNamespace(
    **{
        **vars(pickle), 'Unpickler': _Unpickler,
        'load': lambda file, **options: _Unpickler(file, **options).load()
    })


def _load_weights_only(module: ModuleType) -> None:
    """Adapt ``mmengine.runner.checkpoint``."""
    if hasattr(module, '_safe_torch_load'):
        # onedl-mmengine's would allow any getattr, and what torch refuses.
        module._safe_torch_load = _load  # type: ignore[attr-defined]
    loader = module.CheckpointLoader
    original = loader.load_checkpoint.__func__

    @functools.wraps(original)
    def load_checkpoint(cls: type, filename: str, *args: Any,
                        **kwargs: Any) -> Any:
        if os.environ.get(_TRUST) == '1':
            return original(cls, filename, *args, **kwargs)
        try:
            # Not as torch.load's pickle_module, which torch 1.13 ignores and
            # torch.hub does not take. From 2.6 on torch only asks for it
            # where somebody, as torch.hub, asks for more than weights.
            with _LOADING, patch.object(torch.serialization, 'pickle',
                                        _RESTRICTED), \
                    patch.object(_THREAD, 'loading', True, create=True):
                return original(cls, filename, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(_refusal(filename, error)) from error

    loader.load_checkpoint = classmethod(load_checkpoint)


def _load(file: Any, map_location: Any = None,
          weights_only: bool | None = None) -> Any:
    """As torch itself decides."""
    asked = {} if weights_only is None else dict(weights_only=weights_only)
    return torch.load(file, map_location=map_location, **asked)


def _refusal(filename: str, error: pickle.UnpicklingError) -> str:
    said = str(error)
    found = _REFUSED_GLOBAL.search(said)
    if found is None:
        # Torch says the cause last, after general advice.
        cause = said.rpartition('WeightsUnpickler error: ')[2]
        cause = cause.strip().partition('\n')[0]
        return f'{filename} cannot be loaded as a checkpoint: {cause}'
    return (f'{filename} was not loaded: it refers to {found[1]}, which is '
            'not among the types that mmengine writes into a checkpoint and '
            f'could execute code. Only if you trust the file: set {_TRUST}=1 '
            'in the environment.')
