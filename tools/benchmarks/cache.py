"""Rows a second out of a teacher cache, and a step with it against online.

Reading is through CachedTeacher's own reader, at random, from a file larger
than a processor's caches: "cold" right after the system was told to forget
the file (which a RAM disk does not), "warm" once more. The steps are
ResNet-34 to ResNet-18 with 1000 classes on a batch that is in memory,
interleaved: with the teacher, with its cache, and the student alone.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from measuring import (
    RESULTS,
    Step,
    Times,
    append_rows,
    conditions,
    interleave,
    summary,
)
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.table import Table

from wsld_plugin import compat
from wsld_plugin.datasets.views import SeededView
from wsld_plugin.models import TeacherCache
from wsld_plugin.models.teacher_cache import (
    TeacherCacheWriter,
    decode,
    encode,
    finish_cache,
    input_probe,
    locked,
    make_manifest,
    prepare_cache,
    to_tensors,
)

CONFIGS = Path(__file__).parents[2] / 'configs'
# Classes, and how many are kept beside the true one.
KINDS = [(10, 10), (1000, 1000), (1000, 64)]
# Side of a picture, batch.
SIZES = [(32, 16), (32, 64), (224, 16), (224, 64)]
CHUNK = 4096


def make_cache(folder: Path, classes: int, top_k: int, count: int,
               probes: Optional[np.ndarray] = None, **fields: Any) -> None:
    """Write a cache of random answers, the same for every 4096 rows."""
    manifest = make_manifest(classes, top_k, count=count, **fields)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(CHUNK, classes, generator=generator)
    labels = torch.arange(CHUNK) % classes
    answers = {
        name: value.numpy()
        for name, value in encode(logits, labels, manifest['top_k']).items()
    }
    answers.update(
        label=labels.numpy(), pixels=np.zeros(CHUNK), inputs=np.zeros(CHUNK))
    with locked(folder):
        prepare_cache(folder, manifest)
        writer = TeacherCacheWriter(folder)
        for first in range(0, count, CHUNK):
            chunk = {
                name: value[:count - first]
                for name, value in answers.items()
            }
            if probes is not None:
                chunk['inputs'] = probes[first:first + CHUNK]
            writer.write(first, **chunk)
        writer.close()
        finish_cache(folder)


def forget(path: Path) -> None:
    """Ask the system to read a file from the disk next time."""
    with path.open('rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(cache: TeacherCache, indices: np.ndarray) -> Times:
    """Seconds of looking each batch up, to finished logits."""
    seconds = []
    for batch in indices:
        start = time.perf_counter()
        decode(to_tensors(cache.rows(batch)), cache.num_classes)
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def measure_reading(folder: Path, classes: int, top_k: int,
                    megabytes: int, batch: int,
                    repeats: int) -> list[dict[str, Any]]:
    """Rows of the result for one kind of cache."""
    probe = make_manifest(classes, top_k, count=0)
    count = max(megabytes * 10**6 // probe['row_bytes'], batch)
    make_cache(folder, classes, top_k, count)
    # The same twice: what was cold is warm the second time.
    indices = np.random.default_rng(0).integers(count, size=(repeats, batch))
    forget(folder / 'entries.npy')
    cache = TeacherCache(folder)
    return [
        row(f'read {state}', read(cache, indices), batch, cache.manifest,
            repeats, torch.device('cpu')) for state in ('cold', 'warm')
    ]


def make_steps(folder: Path, side: int, batch: int,
               device: torch.device) -> tuple[dict[str, Step], dict]:
    """A training step with the teacher, with its cache, and without."""
    cfgs = {
        name: Config.fromfile(CONFIGS / f'{config}.py')
        for name, config in (('online', 'wsld_r34_r18_in1k-evalbn'),
                             ('cached', 'wsld_r34_r18_in1k-evalbn-cached'),
                             ('student alone', 'ce_r18_in1k'))
    }
    init_default_scope('mmpretrain')
    weights = folder / 'teacher.pth'
    if not weights.exists():
        teacher = MODELS.build(cfgs['online'].model.teacher)
        torch.save(teacher.state_dict(), weights)
        # Building fills in what the config leaves out.
        cfgs['online'] = Config.fromfile(cfgs['online'].filename)
    cfgs['online'].model.teacher_ckpt = str(weights)
    cfgs['cached'].model.teacher.update(
        teacher_ckpt=str(weights), cache=str(folder / f'{side}x{batch}'))
    models = {
        name: MODELS.build(cfg.model).to(device)
        for name, cfg in cfgs.items()
    }
    for model in models.values():
        model.train()
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(
        256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    samples = [
        DataSample(metainfo=dict(seeded_view=SeededView(i, i, 0, 'benchmark')))
        .set_gt_label(i) for i in range(batch)
    ]
    data = dict(inputs=pictures.to(device), data_samples=samples)
    inputs = models['cached'].data_preprocessor(data, True)['inputs']
    cached = models['cached'].teacher
    make_cache(
        cached.folder, 1000, 64, batch, input_probe(inputs).cpu().numpy(),
        fingerprint='benchmark', preprocessor=None, **cached.identity())

    def step(model: BaseModel) -> Step:
        wrapper = build_optim_wrapper(model, cfgs['online'].optim_wrapper)
        return lambda: model.train_step(data, wrapper)

    steps = {name: step(model) for name, model in models.items()}
    return steps, TeacherCache(cached.folder).manifest


def row(what: str, times: Times, batch: int, manifest: dict[str, Any],
        repeats: int, device: torch.device, side: Optional[int] = None,
        online: Optional[float] = None) -> dict[str, Any]:
    """A row of the result file."""
    return {
        'what': what,
        'side': side or '',
        'batch': batch,
        'classes': manifest['num_classes'],
        'top_k': manifest['top_k'] or 'all',
        'row_bytes': manifest['row_bytes'],
        'milliseconds': f'{1e3 * times.median:.3g}',
        'spread': f'{1e3 * times.spread:.2g}',
        'rows_per_second': f'{batch / times.median:.0f}',
        'speedup': f'{online / times.median:.2f}' if online else '',
        'dtype': 'float32',
        'repeats': repeats,
        **conditions(device),
    }


def main() -> None:
    """Measure, print a table, add to the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--repeats', type=int, default=11, help='steps of each kind')
    parser.add_argument(
        '--reads', type=int, default=200, help='batches of 256 to look up')
    parser.add_argument(
        '--megabytes', type=int, default=1000, help='of each cache to read')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--folder', help='folder on the disk to measure; that of temporary '
        'files by default')
    parser.add_argument('--no-steps', action='store_true',
                        help='measure the reading only')
    parser.add_argument(
        '--out', type=Path, default=RESULTS / 'cache.csv', help='CSV file')
    args = parser.parse_args()
    if min(args.repeats, args.reads) < 2:
        sys.exit('cache.py: --repeats and --reads must be at least 2')
    torch.set_num_threads(args.threads)
    compat.quiet()
    device = torch.device(args.device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for number, (classes, top_k) in enumerate(KINDS):
            rows += measure_reading(folder / str(number), classes, top_k,
                                    args.megabytes, 256, args.reads)
        for side, batch in [] if args.no_steps else SIZES:
            steps, manifest = make_steps(folder, side, batch, device)
            times = interleave(steps, args.repeats, device, warm_up=2)
            rows += [
                row(f'step {kind}', times[kind], batch, manifest,
                    args.repeats, device, side, times['online'].median)
                for kind in steps
            ]
    table = Table('', 'of', 'bytes a row', 'ms (IQR)', 'rows/s', 'speed-up')
    for one in rows:
        size = (f'{one["batch"]} x {one["side"]} px' if one['side'] else
                f'{one["classes"]} classes, {one["top_k"]} kept')
        table.add_row(one['what'], size, str(one['row_bytes']),
                      f'{one["milliseconds"]} ({one["spread"]})',
                      one['rows_per_second'], one['speedup'])
    Console().print(table)
    append_rows(args.out, rows)


if __name__ == '__main__':
    main()
