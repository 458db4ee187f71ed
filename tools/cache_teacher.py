"""Compute a CachedTeacher's answers to all views of its training set.

CONFIG is the one to train with: its model has a CachedTeacher, its training
set is a SeededViews. A run that was cut goes on where it was.
"""
from __future__ import annotations

import argparse
import importlib
import platform
import time
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from command_line import (
    add_common_arguments,
    fail,
    leave_group,
    one_line_errors,
    prepare_devices,
    read_config,
    set_dataloader_defaults,
)
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.device import get_device
from mmengine.dist import (
    barrier,
    get_rank,
    get_world_size,
    init_dist,
    is_distributed,
    is_main_process,
)
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from wsld_plugin.checkpoints import load_strictly
from wsld_plugin.datasets import SeededViews
from wsld_plugin.models import CachedTeacher, TeacherCache
from wsld_plugin.models.teacher_cache import (
    TeacherCacheWriter,
    cache_size,
    encode,
    finish_cache,
    input_probe,
    is_complete,
    largest_difference,
    locked,
    make_manifest,
    prepare_cache,
    unfinished_batches,
)

# Seconds of work that a kill may cost.
FLUSH_EVERY = 5.0
VERSIONS = ('numpy', 'torch', 'torchvision', 'mmcv', 'mmpretrain', 'cv2',
            'PIL')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--top-k',
        type=int,
        metavar='K',
        help='classes to keep beside the true one, the rest as if equal; all '
        'by default, or 64 where there are more than 256')
    parser.add_argument(
        '--verify',
        type=int,
        metavar='N',
        help='then compute N random rows again and compare')
    add_common_arguments(parser)
    args = parser.parse_args()
    if args.verify is not None and args.verify < 1:
        parser.error(f'--verify must be at least 1, got {args.verify}')
    return args


class Teacher(NamedTuple):
    """The online teacher, with what turns a batch into its logits."""

    cached: CachedTeacher
    network: nn.Module
    preprocessor: nn.Module

    def answer(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Preprocessed inputs and the logits that a recorder would get."""
        recorded: list[Any] = []
        try:
            source = self.network.get_submodule(self.cached.source)
        except AttributeError as error:
            fail(f'model.teacher.source={self.cached.source}: {error}')
        handle = source.register_forward_hook(
            lambda module, args, output: recorded.append(output))
        try:
            with torch.no_grad():
                data = self.preprocessor(batch, True)
                # As SingleTeacherDistill calls it.
                self.network(
                    data['inputs'], data['data_samples'], mode='loss')
        finally:
            handle.remove()
        logits = recorded[0] if recorded else None
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            fail(f"model.teacher.source: the teacher's {self.cached.source} "
                 'put out no logits of shape (N, C)')
        return data['inputs'], logits


class Rows(Sampler):
    """Rows of some batches, by the batches' numbers."""

    def __init__(self, batches: np.ndarray, batch_size: int,
                 count: int) -> None:
        self.batches = batches
        self.batch_size = batch_size
        self.count = count

    def __len__(self) -> int:
        """Number of rows."""
        short = 0
        if len(self.batches):
            end = (int(self.batches[-1]) + 1) * self.batch_size
            short = max(end - self.count, 0)
        return len(self.batches) * self.batch_size - short

    def __iter__(self) -> Iterator[int]:
        """Iterate over the rows."""
        for batch in self.batches.tolist():
            first = batch * self.batch_size
            yield from range(first, min(first + self.batch_size, self.count))


def start_processes(cfg: Config) -> None:
    """What Runner does before it builds anything."""
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    set_multi_processing(
        **cfg.get('env_cfg', {}).get('mp_cfg', {}),
        distributed=cfg.launcher != 'none')
    if cfg.launcher != 'none' and not is_distributed():
        init_dist(cfg.launcher, **cfg.env_cfg.get('dist_cfg', {}))


def build_teacher(cfg: Config) -> Teacher:
    """The teacher of the config's CachedTeacher, in evaluation mode."""
    # Building fills configs in; the manifest shall have them as they are.
    model = MODELS.build(deepcopy(cfg.model))
    found = [
        module for module in model.modules()
        if isinstance(module, CachedTeacher)
    ]
    if len(found) != 1:
        fail(f'the model has {len(found)} CachedTeacher, expected 1: '
             "model.teacher=dict(type='CachedTeacher', ...)")
    if getattr(model, 'teacher_trainable', False):
        fail('model.teacher_trainable is True: the answers of a teacher that '
             'trains cannot be computed beforehand')
    if not getattr(model, 'teacher_norm_eval', True):
        fail('model.teacher_norm_eval is False: with the statistics of the '
             'batch a teacher has no answer to a single picture')
    preprocessor = model.data_preprocessor
    if getattr(preprocessor, 'batch_augments', None):
        fail('the data_preprocessor has batch augments: the cache holds '
             'answers to single pictures, not to mixtures')
    network = MODELS.build(deepcopy(found[0].teacher_cfg))
    load_strictly(network, found[0].teacher_ckpt, 'model.teacher.teacher_ckpt')
    device = get_device()
    return Teacher(found[0], network.to(device).eval(),
                   preprocessor.to(device))


def build_views(cfg: Config) -> SeededViews:
    """The config's training set."""
    try:
        views = DATASETS.build(cfg.train_dataloader.dataset)
    except (TypeError, ValueError) as error:
        fail(f'train_dataloader.dataset: {error}')
    if not isinstance(views, SeededViews):
        fail('train_dataloader.dataset must be a SeededViews, got '
             f'{type(views).__name__}')
    return views


def build_loader(cfg: Config, views: SeededViews, sampler: Any) -> DataLoader:
    """The config's loader over rows of our choice, in their order."""
    loader = cfg.train_dataloader.to_dict()
    for name in ('batch_sampler', 'num_batch_per_epoch', 'drop_last'):
        loader.pop(name, None)
    return Runner.build_dataloader(
        dict(loader, dataset=views, sampler=sampler))


def describe(cfg: Config, teacher: Teacher, views: SeededViews,
             num_classes: int, top_k: Optional[int]) -> dict[str, Any]:
    """The manifest that the config asks for."""
    preprocessor = cfg.model.get('data_preprocessor')
    if preprocessor is None:
        preprocessor = cfg.model.architecture.get('data_preprocessor')
    versions = {'python': platform.python_version()}
    for name in VERSIONS:
        versions[name] = importlib.import_module(name).__version__
    return make_manifest(
        num_classes,
        top_k,
        **teacher.cached.identity(),
        preprocessor=preprocessor and preprocessor.to_dict(),
        classes=list(views.metainfo.get('classes') or ()),
        fingerprint=views.fingerprint,
        samples=views.samples,
        views=views.views,
        seed=views.seed,
        count=len(views),
        versions=versions)


def count_classes(teacher: Teacher, views: SeededViews) -> int:
    """Number of logits, from the answer to the first row."""
    return teacher.answer(default_collate([views[0]]))[1].shape[1]


def fill(cfg: Config, teacher: Teacher, views: SeededViews,
         manifest: dict[str, Any]) -> None:
    """Compute this process's share of the rows that are missing."""
    folder, size = teacher.cached.folder, cfg.train_dataloader.batch_size
    batches = unfinished_batches(folder, size)
    # All have read what is done before one of them writes.
    barrier()
    rows = Rows(batches[get_rank()::get_world_size()], size, len(views))
    bar = Progress(
        TextColumn('rows' if get_world_size() == 1 else
                   'rows of the first process'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.fields[rate]:.0f}/s'),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not is_main_process())
    writer = TeacherCacheWriter(folder)
    try:
        with bar:
            task = bar.add_task('', total=len(rows), rate=0.0)
            start = flushed = time.monotonic()
            done = 0
            for batch in build_loader(cfg, views, rows):
                done += write_batch(teacher, batch, writer, manifest)
                now = time.monotonic()
                if now - flushed > FLUSH_EVERY:
                    writer.flush()
                    flushed = now
                bar.update(task, completed=done, rate=done / (now - start))
    finally:
        writer.close()
    barrier()


def write_batch(teacher: Teacher, batch: Any, writer: TeacherCacheWriter,
                manifest: dict[str, Any]) -> int:
    """Write the answers to a batch of consecutive rows."""
    seen = [sample.get('seeded_view') for sample in batch['data_samples']]
    labels = [view.label for view in seen]
    if None in labels:
        fail(f'row {seen[labels.index(None)].row} has no single gt_label')
    inputs, logits = teacher.answer(batch)
    if logits.shape[1] != manifest['num_classes']:
        fail(f'the teacher has {logits.shape[1]} classes, expected '
             f'{manifest["num_classes"]}')
    if not max(labels) < logits.shape[1]:
        fail(f'gt_label {max(labels)} is not among the '
             f"teacher's {logits.shape[1]} classes")
    if 'gt_score' in batch['data_samples'][0]:
        fail('the samples have gt_score, soft labels as of mixup: the cache '
             'holds answers to single pictures')
    fields = encode(logits, torch.tensor(labels, device=logits.device),
                    manifest['top_k'])
    writer.write(
        seen[0].row,
        label=np.array(labels),
        pixels=np.array([view.pixels for view in seen]),
        inputs=input_probe(inputs).cpu().numpy(),
        **{name: value.cpu().numpy()
           for name, value in fields.items()})
    return len(seen)


def verify(cfg: Config, teacher: Teacher, views: SeededViews,
           number: int) -> None:
    """Compute random rows again; leave with an error if they differ."""
    cache = TeacherCache(teacher.cached.folder)
    number = min(number, len(cache))
    chosen = np.sort(
        np.random.default_rng().choice(len(cache), number, replace=False))
    difference = excess = 0.0
    for batch in build_loader(cfg, views, chosen.tolist()):
        seen = [sample.get('seeded_view') for sample in batch['data_samples']]
        rows = cache.rows(np.array([view.row for view in seen]))
        for view, row in zip(seen, rows):
            if (row['label'], row['pixels']) != (view.label, view.pixels):
                fail(f'row {view.row} of {cache.folder} is of another '
                     'picture: its label or pixels differ')
        found = largest_difference(rows, teacher.answer(batch)[1])
        difference, excess = map(max, (difference, excess), found)
    print(f'{number} rows computed again: largest difference {difference:.2g}')
    if excess > 0:
        fail(f'{cache.folder} differs from the teacher by {difference:.2g}, '
             "more than float16's rounding")


def main() -> None:
    """Make or finish the cache, and print its folder as the last line."""
    args = parse_args()
    with one_line_errors():
        cfg = read_config(args)
        set_dataloader_defaults(
            cfg.get('train_dataloader'),
            persistent_workers=False,
            pin_memory=not args.no_pin_memory)
        prepare_devices(cfg)
        start_processes(cfg)
        teacher = build_teacher(cfg)
        views = build_views(cfg)
        folder = teacher.cached.folder
        manifest = describe(cfg, teacher, views,
                            count_classes(teacher, views), args.top_k)
        main_one = is_main_process()
        with locked(folder) if main_one else nullcontext():
            if main_one:
                print(f'{folder}: {len(views)} rows ({views.samples} samples '
                      f'x {views.views} views) of {manifest["row_bytes"]} '
                      f'bytes, {cache_size(manifest) / 1e6:.1f} MB')
                prepare_cache(folder, manifest)
            barrier()
            if not is_complete(folder):
                fill(cfg, teacher, views, manifest)
                if main_one:
                    finish_cache(folder)
        if main_one:
            if args.verify:
                verify(cfg, teacher, views, args.verify)
            print(folder)
    leave_group()


if __name__ == '__main__':
    main()
