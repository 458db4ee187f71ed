"""Compute a teacher's answers, and compare them with those kept."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Optional

import numpy as np
import torch
from mmengine import dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..checkpoints import load_strictly
from ..datasets import SeededViews
from . import storage
from .cached_teacher import CachedTeacher, expect_lasting_answers
from .record import compare, encode, input_probe
from .storage import TeacherCache, TeacherCacheError


def build_cache(cfg: Config, top_k: Optional[int] = None) -> TeacherCache:
    """Make the cache of a config's ``CachedTeacher``, or finish it.

    Rows that are missing or damaged are computed, with a bar on stderr. With
    ``cfg.launcher`` its processes share the work; all must call this.

    Args:
        cfg: A config to train with: its model has one ``CachedTeacher``, its
            training set is a ``SeededViews``.
        top_k: Classes to keep beside the true one, all if there are no more;
            ``None`` for 64, or all where there are at most 256.

    Returns:
        The finished cache.

    Raises:
        TeacherCacheError: If the config or its teacher has no answers that
            can be kept, if the folder has the cache of something else, or if
            another process is making it.
        CheckpointMismatchError: If the weights do not fit the teacher.
        OSError: If a file is missing or cannot be written.
    """
    online = _Online(cfg)
    folder, manifest = online.cached.folder, online.manifest(top_k)
    first = dist.is_main_process()
    with storage.locked(folder) if first else nullcontext():
        found: list[Any] = [
            storage.prepare_cache(folder, manifest) if first else None]
        dist.broadcast_object_list(found)
        cache, missing = TeacherCache(folder, manifest), found[0]
        # Neighbours stay together: processes on several machines then write
        # to different pages of the file.
        rows = np.array_split(missing, dist.get_world_size())[dist.get_rank()]
        title = f'{len(missing)} of {len(cache)} rows' if first else ''
        for samples, inputs, logits in online.answers(rows, title):
            views = [sample.seeded_view for sample in samples]
            fields = encode(logits, _labels(samples, logits), cache.top_k)
            fields['inputs'] = input_probe(inputs)
            cache.write(
                [view.row for view in views],
                pixels=np.array([view.pixels for view in views]),
                **{name: value.cpu().numpy()
                   for name, value in fields.items()})
        dist.barrier()
        if first and len(storage.prepare_cache(folder, manifest)):
            raise TeacherCacheError(
                f'the teacher cache {folder} lost rows: make it again')
        dist.barrier()
    return TeacherCache(folder)


def verify_cache(cfg: Config, rows: int) -> float:
    """Compute random rows of a finished cache again, in this process.

    Args:
        cfg: As for :func:`build_cache`.
        rows: How many; all where there are fewer.

    Returns:
        Largest difference of a centred logit or of the logarithm of a
        cross-entropy; that of float16's rounding is expected.

    Raises:
        TeacherCacheError: If a row is damaged, of another picture, or
            differs by more than rounding.
    """
    online = _Online(cfg)
    cache = TeacherCache(online.cached.folder)
    chosen = np.random.default_rng().choice(
        len(cache), min(rows, len(cache)), replace=False)
    largest = 0.0
    for samples, inputs, logits in online.answers(np.sort(chosen)):
        gap, alike = compare(
            online.cached(inputs, samples), logits, _labels(samples, logits),
            cache.top_k)
        largest = max(largest, gap)
        if not alike:
            raise TeacherCacheError(
                f'{cache.folder} differs from the teacher by {gap:.2g}, more '
                "than float16's rounding")
    return largest


def _labels(samples: list[Any], logits: Tensor) -> Tensor:
    labels = [sample.seeded_view.label for sample in samples]
    return torch.tensor(labels, device=logits.device)


class _Online:
    """A config's teacher at work on the config's training set."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        _start_processes(cfg)
        if cfg.get('data_preprocessor'):
            # As Runner has it.
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        # Building fills configs in; the manifest shall have them as they are.
        model = MODELS.build(deepcopy(cfg.model))
        self.cached = _cached_teacher(model)
        network = MODELS.build(deepcopy(self.cached.teacher_cfg))
        load_strictly(network, self.cached.teacher_ckpt,
                      'model.teacher.teacher_ckpt')
        self.network = network.to(get_device()).eval()
        self.preprocessor = model.data_preprocessor.to(get_device())
        try:
            self.source = network.get_submodule(self.cached.source)
            self.views = DATASETS.build(cfg.train_dataloader.dataset)
        except (AttributeError, TypeError, ValueError) as error:
            raise TeacherCacheError(
                'model.teacher.source or train_dataloader.dataset: '
                f'{error}') from error
        if not isinstance(self.views, SeededViews):
            raise TeacherCacheError(
                'train_dataloader.dataset must be a SeededViews')

    def manifest(self, top_k: Optional[int]) -> dict[str, Any]:
        """The manifest that the config asks for."""
        model, views = self.cfg.model, self.views
        preprocessor = model.get(
            'data_preprocessor', model.architecture.get('data_preprocessor'))
        one = self.answers(np.arange(min(1, len(views))))
        return storage.make_manifest(
            max((logits.shape[1] for _, _, logits in one), default=2),
            top_k,
            **self.cached.identity(),
            preprocessor=preprocessor and preprocessor.to_dict(),
            classes=list(views.metainfo.get('classes') or ()),
            count=len(views),
            samples=views.samples,
            views=views.views,
            seed=views.seed,
            fingerprint=views.fingerprint)

    @torch.no_grad()
    def answers(self,
                rows: np.ndarray,
                title: str = '') -> Iterator[tuple[list[Any], Tensor, Tensor]]:
        """Samples, inputs and logits of rows, in batches, in their order."""
        loader = self.cfg.train_dataloader.to_dict()
        for name in ('batch_sampler', 'num_batch_per_epoch', 'drop_last'):
            loader.pop(name, None)
        batches = Runner.build_dataloader(
            dict(loader, dataset=self.views, sampler=rows))
        console = Console(stderr=True, quiet=not (title and len(rows)))
        recorded: list[Any] = []
        with self.source.register_forward_hook(
                lambda module, args, output: recorded.append(output)):
            for batch in track(batches, title, console=console):
                self._check(batch['data_samples'])
                data = self.preprocessor(batch, True)
                # As SingleTeacherDistill calls it.
                self.network(
                    data['inputs'], data['data_samples'], mode='loss')
                logits = recorded[0] if recorded else None
                recorded.clear()
                if not isinstance(logits, Tensor) or logits.dim() != 2:
                    raise TeacherCacheError(
                        f'model.teacher.source={self.cached.source}: it put '
                        'out no logits of shape (N, C)')
                finite = torch.isfinite(logits).all(1).tolist()
                if False in finite:
                    bad = data['data_samples'][finite.index(False)]
                    raise TeacherCacheError(
                        "the teacher's logits for row "
                        f'{bad.seeded_view.row} are not finite')
                yield data['data_samples'], data['inputs'], logits

    def _check(self, samples: Any) -> None:
        """Refuse samples for which there is no answer to keep."""
        head = self.cached.teacher_cfg.get('head', {})
        classes = range(head.get('num_classes', 2**31))
        for sample in samples:
            row, label, *_ = sample.seeded_view
            if 'gt_score' in sample or label not in classes:
                raise TeacherCacheError(
                    f'row {row} has gt_label {label}, expected one of the '
                    f"teacher's {len(classes)} classes, and no gt_score, "
                    'soft labels as of mixup')


def _start_processes(cfg: Config) -> None:
    """What Runner does before it builds anything."""
    launcher, env_cfg = cfg.get('launcher', 'none'), cfg.get('env_cfg', {})
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    set_multi_processing(
        **env_cfg.get('mp_cfg', {}), distributed=launcher != 'none')
    if launcher != 'none' and not dist.is_distributed():
        # Their shares end hours apart, and NCCL waits for ten minutes.
        dist.init_dist(launcher, **{
            'timeout': 6 * 3600, **env_cfg.get('dist_cfg', {})})


def _cached_teacher(model: nn.Module) -> CachedTeacher:
    """The one in a model, if its answers are those to single pictures."""
    found = [
        module for module in model.modules()
        if isinstance(module, CachedTeacher)
    ]
    if len(found) != 1:
        raise TeacherCacheError(
            f'the model has {len(found)} CachedTeacher, expected 1: '
            "model.teacher=dict(type='CachedTeacher', ...)")
    expect_lasting_answers(model)
    return found[0]
