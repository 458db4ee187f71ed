"""A teacher whose answers were computed beforehand."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoints import weights_sha256
from .record import decode, input_probe, unpack
from .storage import TeacherCache, TeacherCacheError, check_manifest

# Of the probes of preprocessed pictures. bfloat16 moves them by less, other
# means or deviations of the pixels by more.
_PROBE_TOLERANCE = 0.02


@MODELS.register_module()
class CachedTeacher(BaseModel):
    """In a distiller, a teacher that looks its logits up in a cache.

    The module that a recorder listens to is there and puts out the logits,
    so recorder, distiller and loss stay as they are. The training set must be
    a ``SeededViews``; :func:`build_cache` makes the cache from the same
    config. The network itself is not built, and not in checkpoints.

    Logits come back as float16 stored them, but their cross-entropy at
    temperature 1 is the teacher's own to float32's rounding. Each sample's
    data set, label and pixels are compared with those that the teacher saw,
    and the first batch's preprocessing.

    Args:
        cache: Folder of the cache.
        teacher: Config of the teacher.
        teacher_ckpt: File or URL of its weights.
        source: Module of the teacher whose output is cached, ``(N, C)``
            logits; what the recorder's ``source`` names.

    Raises:
        TypeError: If ``teacher`` is no config.
        ValueError: If ``teacher_ckpt`` or ``source`` is empty.
    """

    def __init__(self,
                 cache: str,
                 teacher: Mapping[str, Any],
                 teacher_ckpt: str,
                 source: str = 'head.fc') -> None:
        super().__init__()
        if not isinstance(teacher, Mapping):
            raise TypeError('teacher must be a config, got '
                            f'{type(teacher).__name__}')
        if not (teacher_ckpt and source):
            raise ValueError('teacher_ckpt and source must not be empty, got '
                             f'{teacher_ckpt!r} and {source!r}')
        self.folder = Path(cache)
        self.teacher_cfg = deepcopy(teacher)
        self.teacher_ckpt = teacher_ckpt
        self.source = source
        self._cache: Optional[TeacherCache] = None
        self._preprocessing_known = False
        *path, last = source.split('.')
        parent: nn.Module = self
        for name in path:
            parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, nn.Identity())

    def identity(self) -> dict[str, Any]:
        """What the manifest has of this teacher; reads the weights."""
        return dict(
            source=self.source,
            teacher=json.loads(
                json.dumps(self.teacher_cfg, sort_keys=True, default=repr)),
            teacher_sha256=weights_sha256(self.teacher_ckpt))

    def init_weights(self) -> None:
        """Open the cache, or refuse it, before ``Runner.train`` starts."""
        self._open()

    @torch.no_grad()
    def forward(self,
                inputs: Tensor,
                data_samples: Optional[Sequence[Any]] = None,
                mode: str = 'tensor') -> Any:
        """Look the logits of a training batch up.

        Args:
            inputs: Preprocessed pictures ``(N, channels, *)``.
            data_samples: N samples from a ``SeededViews``.
            mode: ``'tensor'`` or ``'loss'``.

        Returns:
            Float32 logits ``(N, C)`` where ``inputs`` are; for ``'loss'`` {}.

        Raises:
            ValueError: If the cache holds no such answer; says why.
        """
        if mode not in ('tensor', 'loss') or data_samples is None:
            raise ValueError(
                "mode must be 'tensor' or 'loss' and data_samples those of a "
                f'SeededViews, got {mode!r} and {type(data_samples).__name__}'
                ': a CachedTeacher predicts nothing')
        cache = self._open()
        views = self._views(cache, data_samples)
        rows = cache.rows(view.row for view in views)
        for name in ('label', 'pixels'):
            for known, view in zip(rows[name].tolist(), views):
                if known != getattr(view, name):
                    raise TeacherCacheError(
                        f'the teacher cache {self.folder} was made with '
                        f'{name}={known} in row {view.row}, but the sample '
                        f'now has {getattr(view, name)}')
        fields = unpack(rows, inputs.device)
        if not self._preprocessing_known:
            # Once: on a GPU this waits.
            gap = (input_probe(inputs) - fields['inputs']).abs().max().item()
            if not gap < _PROBE_TOLERANCE:
                raise TeacherCacheError(
                    f'the teacher cache {self.folder} was made with '
                    f'data_preprocessor={cache.manifest["preprocessor"]}, but '
                    'the model now makes other inputs of the same pictures, '
                    f'by {gap:.3g}')
            self._preprocessing_known = True
        logits = self.get_submodule(self.source)(
            decode(fields, cache.num_classes))
        return logits if mode == 'tensor' else {}

    def _open(self) -> TeacherCache:
        if self._cache is None:
            cache = TeacherCache(self.folder)
            check_manifest(self.folder, cache.manifest, self.identity())
            self._cache = cache
        return self._cache

    def _views(self, cache: TeacherCache,
               data_samples: Sequence[Any]) -> list[Any]:
        """Which views of the cache's training set the samples are."""
        expected = cache.manifest['fingerprint']
        views = [sample.get('seeded_view') for sample in data_samples]
        for view, sample in zip(views, data_samples):
            if view is None:
                raise TeacherCacheError(
                    'a sample has no seeded_view: CachedTeacher needs '
                    "train_dataloader.dataset.type='SeededViews'")
            if view.fingerprint != expected:
                raise TeacherCacheError(
                    f'the teacher cache {self.folder} was made with '
                    f'fingerprint={expected[:12]}, but the samples have '
                    f'{view.fingerprint[:12]}: other samples, classes, '
                    'pipeline, views or seed')
            if 'gt_score' in sample:
                raise TeacherCacheError(
                    'a sample has gt_score, soft labels as of mixup: the '
                    'teacher cache holds answers to single pictures')
        return views
