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

# Of the probes of preprocessed pictures. bfloat16 moves them by less, another
# order of the colours by more.
_PROBE_TOLERANCE = 0.02


@MODELS.register_module()
class CachedTeacher(BaseModel):
    """In a distiller, a teacher that looks its logits up in a cache.

    The module that a recorder listens to puts out the logits, so recorder,
    distiller and loss stay as they are. The training set must be a
    ``SeededViews``; :func:`build_cache` makes the cache from the same config.
    The network itself is not built, and not in checkpoints.

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

    def expect_distiller(self, distiller: Any) -> None:
        """Refuse a distiller whose teacher would give other answers.

        Raises:
            TeacherCacheError: If it changes, or is to see pictures in
                batches, mixed, or normalised in another way.
        """
        expect_lasting_answers(distiller)
        manifest, now = self._open().manifest, distiller.data_preprocessor
        check_manifest(
            self.folder,
            dict(data_preprocessor=_normalization(manifest['preprocessor'])),
            dict(data_preprocessor=_normalization(dict(now.named_buffers()))))

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
        fields = unpack(self._rows(cache, data_samples), inputs.device)
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

    def _rows(self, cache: TeacherCache, data_samples: Sequence[Any]) -> Any:
        """The records of samples that are those of the cache."""
        views = [sample.get('seeded_view') for sample in data_samples]
        if None in views:
            raise TeacherCacheError(
                'a sample has no seeded_view: CachedTeacher needs '
                "train_dataloader.dataset.type='SeededViews'")
        if any('gt_score' in sample for sample in data_samples):
            raise TeacherCacheError(
                'a sample has gt_score, soft labels as of mixup: the teacher '
                'cache holds answers to single pictures')
        for view in views:
            self._compare(view, 'fingerprint', cache.manifest['fingerprint'])
        rows = cache.rows(view.row for view in views)
        for view, label, pixels in zip(views, rows['label'].tolist(),
                                       rows['pixels'].tolist()):
            self._compare(view, 'label', label)
            self._compare(view, 'pixels', pixels)
        return rows

    def _compare(self, view: Any, name: str, known: object) -> None:
        if getattr(view, name) != known:
            raise TeacherCacheError(
                f'the teacher cache {self.folder} was made with {name}='
                f'{known}, but the sample of row {view.row} now has '
                f'{getattr(view, name)}')


def expect_lasting_answers(distiller: Any) -> None:
    """Refuse a distiller whose teacher's answers cannot be kept."""
    for refused, message in (
        (getattr(distiller, 'teacher_trainable', False),
         'model.teacher_trainable is True: its answers will change'),
        (not getattr(distiller, 'teacher_norm_eval', True),
         'model.teacher_norm_eval is False: it answers to batches only'),
        (getattr(distiller.data_preprocessor, 'batch_augments', None),
         'the data_preprocessor has batch augments: the cache holds answers '
         'to single pictures, not to mixtures')):
        if refused:
            raise TeacherCacheError(message)


def _normalization(fields: Optional[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation, as float32 has them."""
    return {
        name: torch.as_tensor(values).float().flatten().tolist()
        for name, values in (fields or {}).items()
        if name in ('mean', 'std') and values is not None
    }
