"""Which modules of a config's networks a recorder can name."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ..checkpoints import student_model
from .errors import AnalysisError


def recordable_modules(cfg: Config, pattern: str = '*',
                       shape: Sequence[int] | None = None) -> pd.DataFrame:
    """What may stand as ``source`` of a recorder, and what it records.

    Both networks are built, without their weights, and see one picture.

    Args:
        cfg: Config of a distillation, or of one network.
        pattern: For names, as of files: ``'backbone.layer?'``.
        shape: Height and width of the picture; by default those that the
            pipeline of test, val or train ends with.

    Returns:
        A row for each module that is called: ``network``, ``source``,
        ``type``, ``output`` (shapes; ``x2`` if it is called twice) and
        ``parameters``. A CachedTeacher has only its ``source``.

    Raises:
        AnalysisError: If a network cannot be built or does not take the
            picture, the shape is unknown, or no name fits.
    """
    if not cfg.get('model'):
        raise AnalysisError('the config has no model')
    height, width = shape or _shape(cfg)
    # As Runner does for a model that has none of its own.
    common = {'data_preprocessor': cfg.get('data_preprocessor')}
    networks = {'student': {**common, **student_model(cfg.model)}}
    teacher = cfg.model.get('teacher')
    cached = bool(teacher) and 'teacher' in teacher
    answers = teacher.get('source', 'head.fc') if cached else None
    if teacher:
        networks['teacher'] = student_model(
            dict(architecture=teacher['teacher'] if cached else teacher))
    rows = []
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for which, config in networks.items():
            try:
                network = MODELS.build(config).eval()
                outputs = _outputs(network, torch.zeros(1, 3, height, width))
            except (AssertionError, AttributeError, ImportError, LookupError,
                    RuntimeError, TypeError, ValueError) as error:
                raise AnalysisError(
                    f'the {which} cannot be built or does not take a picture '
                    f'of {height} x {width}: {error}') from error
            rows += [(which, name, type(module).__name__, outputs[name],
                      sum(each.numel() for each in module.parameters()))
                     for name, module in network.named_modules()
                     if name in outputs and fnmatchcase(name, pattern) and
                     (which == 'student' or answers in (None, name))]
    if not rows:
        raise AnalysisError(f'no module is called {pattern}')
    return pd.DataFrame(
        rows, columns=['network', 'source', 'type', 'output', 'parameters'])


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Tensor) -> dict[str, str]:
    """Shapes of what the modules return, by name."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, module in network.named_modules():
        if name:
            module.register_forward_hook(
                lambda _, args, output, name=name: found[name].append(
                    _described(output)))
    network(inputs, mode='tensor')
    losses = [name for name, _ in network.named_modules()
              if name.rpartition('.')[2] == 'loss_module']
    if losses and set(losses).isdisjoint(found):
        from mmpretrain.structures import DataSample
        seen = {name: list(shapes) for name, shapes in found.items()}
        network(inputs, [DataSample().set_gt_label(0)], mode='loss')
        # The others were called a second time.
        found.update(seen)
    return {name: shapes[0] + (f' x{len(shapes)}' if shapes[1:] else '')
            for name, shapes in found.items()}


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, (tuple, list)):
        return f'[{", ".join(map(_described, output))}]'
    return type(output).__name__


def _shape(cfg: Config) -> tuple[int, int]:
    """Height and width that a pipeline ends with."""
    for split in ('test', 'val', 'train'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        for step in reversed(dataset.get('pipeline') or []):
            size = step.get('crop_size') or step.get('scale')
            if isinstance(size, int):
                return size, size
            if isinstance(size, (tuple, list)) and len(size) == 2:
                # mmpretrain's and mmseg's put the height first, mmcv's and
                # mmdet's the width.
                width_first = cfg.get('default_scope') == 'mmdet' or not str(
                    step['type']).endswith(('RandomCrop', 'RandomResizedCrop'))
                first, second = size
                return (second, first) if width_first else (first, second)
    raise AnalysisError('the pipelines of the config do not say how large a '
                        'picture is: give its shape')
