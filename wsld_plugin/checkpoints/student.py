"""Take the student out of a distiller: its weights, config and file."""
from __future__ import annotations

import ast
import hashlib
import io
import re
import time
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor

from ..config import literal
from ..version import __version__
from .atomic import write_atomically
from .loading import (
    CheckpointMismatchError,
    mmpretrain_names,
    read_checkpoint,
    strip_prefix,
    unwrapped,
)

# What a config says about a network and its test, not about its training.
_TEST_FIELDS = ('default_scope', 'custom_imports', 'data_preprocessor',
                'test_dataloader', 'test_pipeline', 'test_cfg',
                'test_evaluator', 'tta_pipeline', 'tta_model')
_KEPT_META = ('dataset_meta', 'epoch', 'iter', 'seed', 'experiment_name',
              'time', 'mmengine_version', 'metrics')


class ExportedStudent(NamedTuple):
    """A published student."""

    path: Path
    # Whether the weights are the running average that EMAHook keeps.
    averaged: bool


def student_weights(weights: dict[str, Tensor],
                    source: str) -> OrderedDict[str, Tensor]:
    """The student's weights, named as the student alone names them.

    Args:
        weights: State dict of a distiller (the student's keys start with
            ``architecture.``, or with ``architecture.model.`` where mmrazor
            0.x wrote them) or of a classifier, torchvision's, too.
        source: Where the weights came from, for the error message.

    Returns:
        New state dict that shares the tensors.

    Raises:
        CheckpointMismatchError: If there is no student.
    """
    weights = unwrapped(weights)
    student = strip_prefix(weights, 'architecture.')
    if student:
        return _without_teacher(unwrapped(student))
    weights = mmpretrain_names(weights)
    roots = sorted({key.split('.')[0] for key in weights})
    if 'backbone' not in roots:
        raise CheckpointMismatchError(
            f'{source} holds no student: expected keys that start with '
            '"architecture." (a distiller) or "backbone." (a classifier), '
            f'got {", ".join(roots[:8]) or "no keys"}')
    return weights


def student_model(model: dict[str, Any]) -> dict[str, Any]:
    """Config of the student in a distiller's ``model`` config.

    Args:
        model: Of a distiller or of a classifier, which is returned as it is.

    Returns:
        The student's, with the preprocessor that it is trained with.
    """
    if not isinstance(model.get('architecture'), dict):
        return model
    student = dict(model['architecture'])
    if 'cfg_path' in student:
        from mmengine.hub import get_config
        path = student['cfg_path']
        config = get_config(path)
        # As mmengine's hub does.
        student = dict(config.model, _scope_=path.split('::')[0])
        if 'data_preprocessor' in config:
            student['data_preprocessor'] = config.data_preprocessor
    if model.get('data_preprocessor'):
        student['data_preprocessor'] = model['data_preprocessor']
    return student


def student_checkpoint(checkpoint: dict[str, Any],
                       source: str) -> dict[str, Any]:
    """The student of a checkpoint, as a checkpoint of its own.

    Args:
        checkpoint: Of a distiller or of a classifier, as mmengine writes it.
        source: Path or URL that it came from.

    Returns:
        A copy of the weights under ``state_dict``; under ``meta`` the class
        names, the student's config, its metrics if known, and its source.

    Raises:
        CheckpointMismatchError: If there is no student.
    """
    weights = student_weights(checkpoint['state_dict'], source)
    meta = checkpoint.get('meta', {})
    # EMAHook saves the average as the model and the model as its state.
    averaged = 'ema_state_dict' in checkpoint or meta.get('averaged', False)
    return dict(
        state_dict=OrderedDict(
            (key, value.detach().clone()) for key, value in weights.items()),
        meta=dict(
            {key: meta[key]
             for key in _KEPT_META if key in meta},
            cfg=_student_config(meta.get('cfg', '')),
            source=source.rsplit('/', 1)[-1],
            averaged=averaged,
            torch_version=str(torch.__version__),
            wsld_plugin_version=__version__))


def export_student(source: str, out: str) -> ExportedStudent:
    """Write what :func:`student_checkpoint` returns as a file.

    Args:
        source: Path or URL of a checkpoint of a distiller or classifier.
        out: As for :func:`export_path`.

    Returns:
        The file ``{name}_{date}-{first 8 digits of its SHA-256}.pth``.

    Raises:
        CheckpointError: If ``source`` cannot be read or holds no student.
    """
    published = student_checkpoint(read_checkpoint(source), source)
    buffer = io.BytesIO()
    torch.save(published, buffer)
    data = buffer.getvalue()

    digest = hashlib.sha256(data).hexdigest()[:8]
    path = export_path(out, published, source,
                       f'_{time.strftime("%Y%m%d")}-{digest}.pth')
    write_atomically(path, data)
    return ExportedStudent(path, published['meta']['averaged'])


def export_path(out: str, checkpoint: dict[str, Any], source: str,
                ending: str) -> Path:
    """Where a student goes, in a file that ends as ``ending`` says.

    ``out`` is a file, with or without its suffix, or an existing folder or
    one with a final slash, in which the name is that of the experiment in
    the checkpoint's ``meta``, or of the source.
    """
    path, suffix = Path(out), Path(ending).suffix
    if out.endswith('/') or path.is_dir():
        name = checkpoint['meta'].get('experiment_name', Path(source).stem)
        return path / (re.sub(r'_\d{8}_\d{6}$', '', name) + ending)
    return path.with_name(path.name.removesuffix(suffix) + ending)


def _without_teacher(student: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The student alone, in files of mmrazor 0.x and converted ones.

    There it is called ``model.``, as some classifiers call a network of
    theirs, and the teacher may be inside.
    """
    if any(key.startswith('model.backbone.') for key in student):
        student = strip_prefix(student, 'model.')
    inside: tuple[str, ...] = ()
    if any(key.startswith('backbone.') for key in student):
        inside = ('teacher.', 'distiller.')
    return OrderedDict((key, value) for key, value in student.items()
                       if not key.startswith(inside))


# A training asks for the same one at each of its checkpoints.
@lru_cache(maxsize=1)
def _student_config(text: str) -> str:
    """Text of the student's config, from that of the training.

    Read without running it: a checkpoint's config is somebody's code.

    Returns:
        Empty where the text is no plain config.
    """
    try:
        cfg = {
            node.targets[0].id:  # type: ignore[attr-defined]
            literal(node.value)
            for node in ast.parse(text).body if isinstance(node, ast.Assign)
        }
    except (SyntaxError, ValueError):
        return ''
    if 'model' not in cfg:
        return ''
    student = {key: cfg[key] for key in _TEST_FIELDS if key in cfg}
    return Config(dict(student, model=student_model(cfg['model']))).pretty_text
