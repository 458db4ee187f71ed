"""Load weights that fit exactly, or refuse."""
from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

# Enough to recognise the wrong network by.
_SHOWN_LINE = 300
# How the two formats of torch.save begin: a zip archive, a pickle.
_BEGINNINGS = (b'PK\x03\x04', b'\x80')
# What torch.load, by its version, and zipfile raise of files not their own.
_UNREADABLE = (AssertionError, AttributeError, EOFError, ImportError,
               LookupError, RuntimeError, TypeError, ValueError,
               pickle.UnpicklingError, struct.error, zipfile.BadZipFile,
               zlib.error)
# What all torchvision's ResNets have, ResNeXt and wide ones, too.
_RESNET = {'conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says what to do."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint does not hold the weights that were asked for."""


def read_checkpoint(path: str, *, training: bool = False) -> dict[str, Any]:
    """Read a checkpoint file or URL on the CPU, by mmengine's loader.

    Args:
        path: Local path or URL of any scheme that mmengine knows.
        training: Whether a training is to go on with it.

    Returns:
        The checkpoint, with the weights under ``state_dict``; a bare state
        dict is put there.

    Raises:
        MissingCheckpointError: If there is no such file.
        DownloadError: If a URL's file cannot be had.
        CheckpointError: In one line, if the file is cut off, changed or no
            checkpoint, refers to code, holds no weights, or, for a
            training, holds only them.
    """
    # First, because torch compares no checksums.
    if Path(path).is_file() and (fault := fault_of(Path(path))):
        raise CheckpointError(f'{path} {fault}')
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise MissingCheckpointError(f'{path} is missing') from error
    except _UNREADABLE as error:
        said = ' '.join(str(error).split()) or type(error).__name__
        # It does where the file refers to code.
        raise CheckpointError(said if said.startswith(path) else
                              f'{path} cannot be read: {said}') from error
    found = f'a {type(checkpoint).__name__}'
    if isinstance(checkpoint, dict):
        found = ', '.join(map(str, [*checkpoint][:8])) or 'nothing'
        found = ' '.join(found.split())
        if 'state_dict' not in checkpoint:
            checkpoint = dict(state_dict=checkpoint)
        if _is_weights(checkpoint['state_dict']):
            if training:
                expect_training(checkpoint, path)
            return checkpoint
    raise CheckpointError(f'{path} holds no dictionary of weights, itself or '
                          f'as state_dict, but {found}')


def expect_training(checkpoint: dict[str, Any],
                    path: str,
                    distiller: nn.Module | None = None) -> None:
    """Refuse a file that is no training's, as a student's that stands beside.

    Args:
        checkpoint: What was read.
        path: Where from, for the error message.
        distiller: Who gets the weights, if any that fit it will do.

    Raises:
        CheckpointMismatchError: Says what the file is and what to take.
    """
    if 'message_hub' in checkpoint:
        return
    weights = unwrapped(checkpoint.get('state_dict', checkpoint))
    if distiller is not None and weights.keys() & distiller.state_dict().keys(
    ):
        return
    meta = checkpoint.get('meta', {})
    source = meta['source'] if 'averaged' in meta else None
    raise CheckpointMismatchError(
        f'{path} holds {"the student" if source else "weights"} alone, and '
        f'no training: resume from {source or "its checkpoint"}, or begin '
        "anew with init_cfg=dict(type='Pretrained', checkpoint=...) in "
        'model.architecture (in model, if it has no teacher)')


def _is_weights(state: object) -> bool:
    # Modules may put anything into their extra state.
    return isinstance(state, dict) and all(
        isinstance(value, Tensor) or str(key).endswith('_extra_state')
        for key, value in state.items())


def fault_of(path: Path) -> str | None:
    """The end of a sentence on what keeps a file from being a checkpoint.

    Files of ``torch.save`` are zip archives, whose checksums are compared;
    those of before torch 1.6 have none. None if nothing is seen.
    """
    if not path.is_file():
        return 'is missing'
    with path.open('rb') as file:
        start = file.read(16)
    if not start:
        return 'is empty'
    if not start.startswith(_BEGINNINGS):
        return f'is no checkpoint: it starts with {start!r}'
    if not start.startswith(b'PK'):
        return None
    # A zip archive ends with its table of contents.
    try:
        if not zipfile.is_zipfile(path):
            return 'is cut off'
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (*_UNREADABLE, OSError) as error:  # of a place before the file
        return f'is damaged: {" ".join(str(error).split())}'
    # A name that was changed may hold anything, also nothing.
    return None if wrong is None else (
        f'is damaged: {wrong!a} is not what its checksum tells')


def strip_prefix(weights: dict[str, Tensor],
                 prefix: str) -> OrderedDict[str, Tensor]:
    """Weights below a prefix, which ends with a dot, named without it."""
    return OrderedDict((key[len(prefix):], value)
                       for key, value in weights.items()
                       if key.startswith(prefix))


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefix that a wrapper leaves."""
    return strip_prefix(weights, 'module.') or weights


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
        _, *lines = filter(None, map(str.strip, str(error).splitlines()))
        raise CheckpointMismatchError(
            f'{source} does not fit the {type(module).__name__}: ' + '; '.join(
                line if len(line) <= _SHOWN_LINE else
                f'{line[:_SHOWN_LINE]} ...' for line in lines[:3])) from error


def weights_for(module: nn.Module, path: str) -> dict[str, Tensor]:
    """Weights of a file, under the names that the module has for them."""
    weights = unwrapped(read_checkpoint(path)['state_dict'])
    if module.state_dict().keys() & weights.keys():
        # Torchvision's names may be the module's own.
        return weights
    return mmpretrain_names(weights)


def mmpretrain_names(weights: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Name a ResNet's weights as mmpretrain's ``ImageClassifier`` does.

    Args:
        weights: State dict of a classifier.

    Returns:
        New state dict that shares the tensors; with the names that it came
        with, if these are not those of a ResNet of torchvision's.

    Examples:
        >>> list(mmpretrain_names(dict.fromkeys(
        ...     ['conv1.weight', 'layer1.0.conv1.weight', 'fc.weight'])))
        ['backbone.conv1.weight', 'backbone.layer1.0.conv1.weight', \
'head.fc.weight']
    """
    if not weights.keys() >= _RESNET:
        return OrderedDict(weights)
    return OrderedDict(
        (f'{"head" if key.startswith("fc.") else "backbone"}.{key}', value)
        for key, value in weights.items())
