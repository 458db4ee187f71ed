"""Load weights that fit exactly, or refuse."""
from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

from .conversion import mmpretrain_names

# Enough to recognise the wrong network by.
_SHOWN_LINE = 300


class CheckpointMismatchError(ValueError):
    """A checkpoint does not hold the weights that were asked for."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint file or URL on the CPU, by mmengine's loader.

    Args:
        path: Local path or URL of any scheme that mmengine knows.

    Returns:
        The checkpoint, with the weights under ``state_dict``; a bare state
        dict is put there.

    Raises:
        FileNotFoundError: If a local file is missing.
        CheckpointMismatchError: If the file holds no dictionary.
    """
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    if not isinstance(checkpoint, dict):
        raise CheckpointMismatchError(
            f'{path} holds a {type(checkpoint).__name__}, expected a '
            'dictionary of weights')
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    return checkpoint


def strip_prefix(weights: dict[str, Tensor],
                 prefix: str) -> OrderedDict[str, Tensor]:
    """Weights of the keys that start with a prefix, without it there.

    Args:
        weights: State dict.
        prefix: Where the wanted module stands, with its final dot.

    Returns:
        New state dict that shares the tensors; empty if no key starts so.
    """
    return OrderedDict((key[len(prefix):], value)
                       for key, value in weights.items()
                       if key.startswith(prefix))


def load_strictly(module: nn.Module, path: str, source: str) -> None:
    """Load a checkpoint file into a module that it must fit exactly.

    Args:
        module: Gets the weights.
        path: Local path or URL; keys may start with ``module.`` and may be
            torchvision's.
        source: What the path was given as, for the error message.

    Raises:
        CheckpointMismatchError: If keys are missing or unexpected or shapes
            differ.
    """
    load_weights(module, weights_for(module, path), f'{source}={path}')


def load_what_fits(module: nn.Module, path: str) -> None:
    """Load a checkpoint file into a module and warn of what does not fit.

    Args:
        module: Gets the weights.
        path: As for :func:`load_strictly`.
    """
    load_state_dict(module, weights_for(module, path), strict=False)


def load_weights(module: nn.Module, weights: dict[str, Tensor],
                 source: str) -> None:
    """Load weights into a module that they must fit exactly.

    Args:
        module: Gets the weights; may be wrapped for distribution or
            test-time augmentation.
        weights: State dict of the module inside the wrapper.
        source: Where the weights came from, for the error message.

    Raises:
        CheckpointMismatchError: As :func:`load_strictly`.
    """
    try:
        load_state_dict(module, OrderedDict(weights), strict=True)
    except RuntimeError as error:
        lines = [
            line.strip() for line in str(error).splitlines() if line.strip()
        ]
        raise CheckpointMismatchError(
            f'{source} does not fit the {type(module).__name__}: ' +
            '; '.join(line if len(line) <= _SHOWN_LINE else
                      f'{line[:_SHOWN_LINE]} ...' for line in lines[1:4])
        ) from error


def weights_for(module: nn.Module, path: str) -> OrderedDict[str, Tensor]:
    """Weights of a file, under the names that the module has for them."""
    weights = OrderedDict(read_checkpoint(path)['state_dict'])
    weights = strip_prefix(weights, 'module.') or weights
    if module.state_dict().keys() & weights.keys():
        # Torchvision's names may be the module's own.
        return weights
    return mmpretrain_names(weights)
