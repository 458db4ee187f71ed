"""Pictures a second of ImageNet's training pipeline, for each way to load.

All ways make the same random crops of the same files, interleaved. Pictures a
second for a core are by the processor's time of one process that does a
worker's work, collating included; those of the loader are by the clock.
Pixels are compared with those of mmpretrain's pipeline.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measuring import RESULTS, append_rows, conditions, summary
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import wsld_plugin

# Width and height: ImageNet's mean, and a photograph of a few megapixels.
SIZES = ((500, 375), (1600, 1200))
SCALE = 224
BATCH = 32
CROP = dict(type='LoadRandomResizedCrop', scale=SCALE)
STOCK = (dict(type='LoadImageFromFile'),
         dict(type='RandomResizedCrop', scale=SCALE))
# Name, how a picture is loaded and cropped, how a batch is collated.
WAYS: dict[str, tuple[tuple[dict, ...], Callable]] = {
    'mmpretrain': (STOCK, pseudo_collate),
    'default_collate': (STOCK, default_collate),
    'region': ((CROP | dict(region=True), ), default_collate),
    'min_sampling=1': ((CROP | dict(min_sampling=1), ), default_collate),
    'min_sampling=0.5': ((CROP | dict(min_sampling=0.5), ), default_collate),
}


class Pictures(Dataset):
    """Files through a pipeline that ends as the training pipelines do."""

    def __init__(self, paths: list[Path], load: tuple[dict, ...]) -> None:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            self.pipeline = [
                TRANSFORMS.build(step) for step in (
                    *load,
                    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                    dict(type='PackInputs'))
            ]
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        results: dict[str, Any] = dict(
            img_path=str(self.paths[index]), gt_label=index % 1000)
        for step in self.pipeline:
            results = step(results)
        return results


def synthetic(size: tuple[int, int], seed: int) -> Image.Image:
    """Overlapping shapes with the spectrum of photographs, 1/frequency."""
    rng = np.random.default_rng(seed)
    width, height = size
    frequency = np.hypot(
        np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf

    def field(power: float) -> np.ndarray:
        noise = rng.normal(size=(2, *frequency.shape))
        wave = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**power,
                             (height, width))
        return wave / wave.std()

    y, x = np.mgrid[:height, :width]
    light = field(1.0)
    for _ in range(12):
        distance = np.hypot(x - rng.uniform(0, width),
                            (y - rng.uniform(0, height)) * rng.uniform(.6, 2))
        inside = distance < rng.uniform(0.05, 0.3) * width
        light[inside] = light[inside] * rng.uniform(0.1, 1) + rng.normal()
    colours = [light + 0.4 * field(1.5) for _ in range(3)]
    return Image.fromarray(
        np.clip(127 + 45 * np.stack(colours, -1), 0, 255).astype(np.uint8))


def write_pictures(folder: Path, size: tuple[int, int], count: int,
                   source: Path | None) -> list[Path]:
    """JPEGs of one size, of quality 92, from photographs or synthetic ones.

    Raises:
        ValueError: If the folder ``source`` holds no picture.
    """
    originals: list[Path] = []
    if source is not None:
        known = Image.registered_extensions()
        originals = sorted(
            path for path in source.rglob('*')
            if path.suffix.lower() in known)[:count]
        if not originals:
            raise ValueError(f'no pictures in {source}')
    paths = []
    for number in range(count):
        if originals:
            with Image.open(originals[number % len(originals)]) as file:
                picture = file.convert('RGB').resize(
                    size, Image.Resampling.BICUBIC)
        else:
            picture = synthetic(size, number)
        paths.append(folder / f'{size[0]}x{size[1]}_{number}.jpg')
        picture.save(paths[-1], quality=92)
    return paths


def worker_seconds(dataset: Pictures, collate: Callable, seed: int) -> float:
    """Seconds of the processor that one worker spends on a picture."""
    np.random.seed(seed)
    start = time.process_time()
    for first in range(0, len(dataset), BATCH):
        collate([
            dataset[index]
            for index in range(first, min(first + BATCH, len(dataset)))
        ])
    return (time.process_time() - start) / len(dataset)


def loader_seconds(loader: DataLoader) -> float:
    """Seconds on the clock for a picture, once the workers have started."""
    iterator = iter(loader)
    next(iterator)
    start = time.perf_counter()
    for _ in iterator:
        pass
    return (time.perf_counter() - start) / (BATCH * (len(loader) - 1))


def pixel_effect(dataset: Pictures, stock: Pictures) -> dict[str, str]:
    """Share of the crops that differ from the stock ones, and by how much."""
    differences = []
    for seed in range(4 * len(stock)):
        crops = []
        for one in (dataset, stock):
            np.random.seed(seed)
            crops.append(one[seed % len(stock)]['inputs'].int())
        differences.append((crops[0] - crops[1]).abs())
    changed = [one for one in differences if one.any()]
    means = [one.double().mean().item() for one in changed]
    return dict(
        crops_changed=f'{len(changed) / len(differences):.2f}',
        mean_difference=f'{np.mean(means or [0]):.2f}',
        max_difference=str(max([int(one.max()) for one in changed] or [0])))


def measure(paths: list[Path], ways: dict[str, tuple], workers: int,
            repeats: int) -> list[dict[str, Any]]:
    """Rows of the result for the files of one size."""
    datasets = {
        name: Pictures(paths, load)
        for name, (load, _) in ways.items()
    }
    loaders: dict[str, DataLoader] = {
        name: DataLoader(
            ConcatDataset([dataset] * (1 + 4 * BATCH * workers // len(paths))),
            batch_size=BATCH,
            drop_last=True,
            num_workers=workers,
            collate_fn=ways[name][1],
            multiprocessing_context='fork')
        for name, dataset in datasets.items() if workers
    }
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for i in range(repeats + 1):
        for name, dataset in datasets.items():
            seconds = (worker_seconds(dataset, ways[name][1], i),
                       loader_seconds(loaders[name]) if workers else 0)
            if i:  # The first round warms up.
                runs[name].append(seconds)
    rows = []
    of_stock = [summary([run[part] for run in runs['mmpretrain']]).median
                for part in (0, 1)]
    kilobytes = np.mean([path.stat().st_size for path in paths]) / 1e3
    for name in ways:
        worker, loader = (summary([run[part] for run in runs[name]])
                          for part in (0, 1))
        with Image.open(paths[0]) as picture:
            size = f'{picture.width}x{picture.height}'
        rows.append(
            dict(
                size=size,
                kilobytes=f'{kilobytes:.0f}',
                way=name,
                per_core=f'{1 / worker.median:.0f}',
                spread=f'{worker.spread / worker.median**2:.0f}',
                speedup=f'{of_stock[0] / worker.median:.2f}',
                workers=workers,
                loader=f'{1 / loader.median:.0f}' if workers else '',
                loader_speedup=f'{of_stock[1] / loader.median:.2f}'
                if workers else '',
                **pixel_effect(datasets[name], datasets['mmpretrain']),
                opencv=cv2.__version__,
                **conditions(torch.device('cpu'))))
    return rows


def available_ways() -> dict[str, tuple]:
    """All ways but those whose package is missing, which is said."""
    ways = dict(WAYS)
    try:
        Pictures([], ways['region'][0])
    except ImportError as error:
        print(f'data.py: left out: {error}', file=sys.stderr)
        del ways['region']
    return ways


def main() -> None:
    """Measure, print a table for each size, add to the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--source',
        type=Path,
        help='folder of photographs; synthetic pictures by default')
    parser.add_argument(
        '--pictures', type=int, default=64, help='files of each size')
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument(
        '--workers', type=int, default=2, help='of the loader; 0 for none')
    parser.add_argument(
        '--out', type=Path, default=RESULTS / 'data.csv', help='CSV file')
    args = parser.parse_args()
    for name, low in (('pictures', 1), ('repeats', 2), ('workers', 0)):
        if getattr(args, name) < low:
            sys.exit(f'data.py: --{name} must be at least {low}')
    # As in a worker.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    wsld_plugin.compat.quiet()
    ways = available_ways()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            try:
                paths = write_pictures(
                    Path(folder), size, args.pictures, args.source)
            except ValueError as error:
                sys.exit(f'data.py: {error}')
            of_size = measure(paths, ways, args.workers, args.repeats)
            table = Table(
                'way', 'core (IQR)', '', 'loader', '', 'changed', 'by (max)',
                title=f'{of_size[0]["size"]}, {of_size[0]["kilobytes"]} kB',
                caption='pictures a second of one core and of a loader with '
                f'{args.workers} worker(s); share of the crops whose pixels '
                'differ, by how much of 255 on average and at most')
            for row in of_size:
                table.add_row(
                    row['way'], f'{row["per_core"]} ({row["spread"]})',
                    row['speedup'], row['loader'], row['loader_speedup'],
                    row['crops_changed'],
                    f'{row["mean_difference"]} ({row["max_difference"]})')
            Console().print(table)
            rows += of_size
    append_rows(args.out, rows)


if __name__ == '__main__':
    main()
