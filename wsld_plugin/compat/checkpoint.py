"""mmengine's checkpoints under torch's weights-only loading."""
from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

from .fix import put_on_record
from .import_hook import after_import

# The statistics that mmengine registers, and pickles by reference.
_STATISTICS = ('min', 'max', 'current', 'mean')
# In what torch says of a type that it does not know, or knows as dangerous.
_REFUSED_GLOBAL = re.compile(
    r'GLOBAL (\S+) (?:was not an allowed|whose module)')
# Kinds of number that a logged value may have.
_DTYPE_CODES = '?bhilqBHILQefd'


def apply() -> None:
    """Make mmengine's checkpoints loadable with ``weights_only=True``."""
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    torch.serialization.add_safe_globals(_written_by_mmengine())
    after_import('mmengine.runner.checkpoint', _load_weights_only)
    put_on_record('mmengine-checkpoints')


def _written_by_mmengine() -> list[Any]:
    """Allow-list entries, of files written under numpy 1 or 2."""
    array = np.zeros(1)
    reconstruct = array.__reduce__()[0]
    scalar = array[0].__reduce__()[0]
    multiarray = ('numpy.core.multiarray', 'numpy._core.multiarray')
    return [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in _DTYPE_CODES},
        *((reconstruct, f'{name}._reconstruct') for name in multiarray),
        *((scalar, f'{name}.scalar') for name in multiarray),
        (_statistic, 'builtins.getattr'),
    ]


def _statistic(owner: object, name: str) -> Callable[..., Any]:
    """What ``getattr`` may be in a checkpoint: a HistoryBuffer's statistic.

    Raises:
        pickle.UnpicklingError: For every other attribute or owner.
    """
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(
            'Unsupported global: GLOBAL builtins.getattr was not an allowed '
            f'global by default, but for the statistics of HistoryBuffer; '
            f'asked for {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


def _load_weights_only(module: ModuleType) -> None:
    """Adapt ``mmengine.runner.checkpoint``."""
    # Downloads default to weights_only=False in torch.hub; None means
    # torch.load's own default, which honours the opt-out.
    module.__dict__['load_url'] = functools.partial(
        module.load_url, weights_only=None)
    if hasattr(module, '_safe_torch_load'):
        # onedl-mmengine allows the whole of getattr and executes the file
        # when that is not enough.
        module.__dict__['_safe_torch_load'] = torch.load
    loader = module.CheckpointLoader
    original = loader.load_checkpoint.__func__

    @functools.wraps(original)
    def load_checkpoint(cls: type, filename: str, *args: Any,
                        **kwargs: Any) -> Any:
        try:
            return original(cls, filename, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(_refusal(filename, error)) from error

    loader.load_checkpoint = classmethod(load_checkpoint)


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
            'could execute code. Only if you trust the file: allow that '
            'type by torch.serialization.add_safe_globals, or set the '
            'environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1.')
