"""Keep a teacher that stands in a file already out of checkpoints."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .loading import (
    CheckpointMismatchError,
    read_checkpoint,
    strip_prefix,
    weights_for,
)


class FrozenTeacher:
    """The weights of a distiller's teacher that its file holds.

    Args:
        teacher: The module ``teacher`` of the distiller.
        path: File or URL that it was loaded from.
    """

    def __init__(self, teacher: nn.Module, path: str) -> None:
        weights = weights_for(teacher, path)
        self._weights = {
            f'teacher.{key}': weights[key]
            for key in teacher.state_dict() if key in weights
        }
        self._path = path

    @cached_property
    def sha256(self) -> str:
        """Digest of the weights' names, types, shapes and values."""
        return _digest(self._weights)

    def leave_out(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights that are still those of the file out.

        Those that changed stay where they are, in the model's weights and in
        the running average that ``EMAHook`` may have added.

        Args:
            checkpoint: What mmengine is about to save, changed in place; its
                ``meta`` gets the digest as ``teacher_sha256``.
        """
        checkpoint['meta']['teacher_sha256'] = self.sha256
        states = list(_states(checkpoint))
        for key, value in self._weights.items():
            # In both or in neither: EMAHook swaps them when it resumes.
            if all(
                    _equal(state.get(prefix + key), value)
                    for prefix, state in states):
                for prefix, state in states:
                    del state[prefix + key]

    def put_back(self, checkpoint: dict[str, Any]) -> None:
        """Complete a checkpoint by what :meth:`leave_out` took out.

        Args:
            checkpoint: What mmengine read, changed in place.

        Raises:
            CheckpointMismatchError: If it was made with other weights.
        """
        expected = checkpoint['meta']['teacher_sha256']
        if expected != self.sha256:
            raise CheckpointMismatchError(
                'the checkpoint was made with another teacher: its weights '
                f'had SHA-256 {expected[:8]}, those of model.teacher_ckpt='
                f'{self._path} have {self.sha256[:8]}')
        for prefix, state in _states(checkpoint):
            for key, value in self._weights.items():
                state.setdefault(prefix + key, value)


def weights_sha256(path: str) -> str:
    """Digest of a checkpoint's weights, whatever else it holds.

    Args:
        path: Local path or URL.

    Returns:
        SHA-256 of their names, types, shapes and values, in hexadecimal.
    """
    weights = read_checkpoint(path)['state_dict']
    return _digest(strip_prefix(weights, 'module.') or weights)


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f'{key} {value.dtype} {[*value.shape]}\n'.encode())
        values = value.contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _states(
        checkpoint: dict[str, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts in a checkpoint, with what their keys start with."""
    yield '', checkpoint['state_dict']
    if 'ema_state_dict' in checkpoint:
        yield 'module.', checkpoint['ema_state_dict']


def _equal(value: Tensor | None, known: Tensor) -> bool:
    """Whether a value, on any device, is bit for bit the known one."""
    return (value is not None and value.dtype == known.dtype
            and torch.equal(value.cpu(), known))
