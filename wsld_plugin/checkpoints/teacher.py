"""A distiller's teacher: load it or refuse, keep it out of checkpoints."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from .loading import (
    CheckpointMismatchError,
    MissingCheckpointError,
    load_strictly,
    read_checkpoint,
    unwrapped,
    weights_for,
)


def load_teacher(teacher: nn.Module, path: str, source: str) -> None:
    """As :func:`load_strictly`, and say what to do where a file does not fit.

    Where it cannot be reached the teacher refuses to run, and nothing else
    happens: who tests a student needs no teacher.
    """
    try:
        load_strictly(teacher, path, source)
    except OSError as error:
        # A download's says where from, and where the file may be put.
        cause = error if not isinstance(
            error, FileNotFoundError) else MissingCheckpointError(
                f'{source}={path} could not be read: {error}')

        def refuse(*_: Any) -> None:
            raise cause

        teacher.register_forward_pre_hook(refuse)
    except CheckpointMismatchError as error:
        raise CheckpointMismatchError(
            f'{error}. To load what fits and leave the rest as it is, set '
            f'{source.rpartition(".")[2]}=None and give the teacher '
            "init_cfg=dict(type='Pretrained', checkpoint=...), of a "
            "distillation's file with prefix='architecture.' (the student) "
            "or prefix='teacher.'") from error


def has_weights(teacher: nn.Module) -> bool:
    """Whether a teacher will not be random, before it is initialised.

    It has no weights, or some were loaded, or an ``init_cfg`` names a file.
    """
    if next(teacher.parameters(), None) is None:
        return True
    parts = [*teacher.modules()]
    cfgs = [getattr(part, 'init_cfg', None) for part in parts]
    return any(getattr(part, 'is_init', False) for part in parts) or any(
        one.get('type') in ('Pretrained', PretrainedInit) for cfg in cfgs
        for one in (cfg if isinstance(cfg, list) else [cfg]) if one)


def keep_teacher(teacher: nn.Module, weights: dict[str, Tensor]) -> bool:
    """Take another teacher's weights out of a distiller's.

    Args:
        teacher: The module ``teacher`` of the distiller.
        weights: State dict of the distiller, changed in place.

    Returns:
        Whether they were another's: a parameter is missing or differs.
    """
    own = dict(teacher.named_parameters(prefix='teacher'))
    if own and all(_equal(weights.get(key), own[key].cpu()) for key in own):
        return False
    theirs = [key for key in weights if key.startswith('teacher.')]
    for key in theirs:
        del weights[key]
    return bool(own or theirs)


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

    def is_of(self, checkpoint: dict[str, Any]) -> bool:
        """Whether :meth:`leave_out` took these weights out."""
        return checkpoint['meta'].get('teacher_sha256') == self.sha256

    def put_back(self, checkpoint: dict[str, Any]) -> None:
        """Complete a checkpoint by what :meth:`leave_out` took out.

        Args:
            checkpoint: What mmengine read, changed in place.

        Raises:
            CheckpointMismatchError: If it was made with other weights.
        """
        if not self.is_of(checkpoint):
            expected = checkpoint['meta']['teacher_sha256']
            raise CheckpointMismatchError(
                'the checkpoint was made with another teacher: its weights '
                f'had SHA-256 {expected[:8]}, those of model.teacher_ckpt='
                f'{self._path} have {self.sha256[:8]}')
        for prefix, state in _states(checkpoint):
            for key, value in self._weights.items():
                state.setdefault(prefix + key, value)


def weights_sha256(path: str) -> str:
    """SHA-256 of the weights in a file or at a URL, whatever else it holds.

    In hexadecimal, of their names, types, shapes and values.
    """
    return _digest(unwrapped(read_checkpoint(path)['state_dict']))


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
