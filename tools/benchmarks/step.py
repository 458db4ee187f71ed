"""Time of a distillation step: stock mmrazor against each lever.

Each variant is built by mmengine's Runner from the shipped config, has a
process of its own, so that none meets another's memory, and its batch already
on the device; they take turns of two steps, of which the second counts.
"stock" is mmrazor's distiller with mmrazor's WSLD and nothing of this package.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import append_rows, clock, conditions, summary
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS, MODELS
from rich.console import Console
from rich.table import Table
from torch import nn

from wsld_plugin import compat

CONTEXT = multiprocessing.get_context('spawn')
CONFIGS = Path(__file__).parents[2] / 'configs'
CACHE_TEACHER = Path(__file__).parents[1] / 'cache_teacher.py'
# Side of a picture, batch, classes.
PAIRS = {'imagenet': (224, 16, 1000), 'cifar': (32, 64, 100)}
HOOK = dict(type='FastStepHook')
BFLOAT16 = dict(type='FastStepHook', teacher_dtype='bfloat16')
# Name: keywords of `make_config`.
VARIANTS: dict[str, dict[str, Any]] = {
    'stock': dict(stock=True),
    'same numerics': dict(hooks=[HOOK]),
    'bfloat16': dict(hooks=[BFLOAT16], amp=True),
    'cached': dict(hooks=[HOOK], cached=True),
    'cached, bfloat16': dict(hooks=[HOOK], cached=True, amp=True),
    'student alone': dict(alone=True),
}


@DATASETS.register_module(force=True)
class RandomPictures(BaseDataset):
    """Noise as pictures: arithmetic takes as long on anything else."""

    def __init__(self, number: int, size: int, classes: int, **kwargs: Any):
        self.number, self.size, self.classes = number, size, classes
        super().__init__('', **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Pictures and labels, the same at every call."""
        rng = np.random.default_rng(0)
        shape = (self.size, self.size, 3)
        return [
            dict(img=rng.integers(256, size=shape, dtype=np.uint8),
                 gt_label=int(rng.integers(self.classes)))
            for _ in range(self.number)
        ]


@LOOPS.register_module(force=True)
class Within(IterBasedTrainLoop):
    """Stands still before its first iteration while something is measured."""

    then: Callable[[Runner], None]

    def run(self) -> nn.Module:  # type: ignore[override]
        """Call what mmengine's loops call, without iterations."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        Within.then(self.runner)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


def make_config(pair: str,
                folder: str,
                *,
                stock: bool = False,
                hooks: list[dict] | None = None,
                amp: bool = False,
                cached: bool = False,
                alone: bool = False) -> Config:
    """Config of one variant, from the shipped one."""
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_in1k-evalbn.py')
    size, batch, classes = PAIRS[pair]
    model = cfg.model
    networks = (model.architecture, model.teacher)
    if pair == 'cifar':
        for network, depth in zip(networks, (16, 40)):
            network.backbone = ConfigDict(
                type='WideResNet', depth=depth, widen_factor=2)
            network.head.in_channels = 128
    for network in networks:
        network.head.num_classes = classes
        network.data_preprocessor.num_classes = classes
    # The same weights for all, so that their first losses can be compared.
    model.teacher_ckpt = f'{folder}/teacher.pth'
    model.architecture.init_cfg = dict(
        type='Pretrained', checkpoint=f'{folder}/student.pth')
    if stock:
        model.distiller.distill_losses.loss_wsld = dict(
            type='WSLD', tau=2, loss_weight=2.5, num_classes=classes)
    if alone:
        model = model.architecture
    dataset = dict(
        type='RandomPictures',
        number=batch,
        size=size,
        classes=classes,
        pipeline=[dict(type='PackInputs')])
    sampler = dict(type='DefaultSampler', shuffle=False)
    if cached:
        dataset = dict(type='SeededViews', views=1, dataset=dataset)
        sampler = dict(type='ViewSampler', shuffle=False)
        model.teacher = dict(
            type='CachedTeacher',
            cache=f'{folder}/cache',
            teacher=model.teacher,
            teacher_ckpt=model.teacher_ckpt)
        model.teacher_ckpt = None
    wrapper = dict(optimizer=cfg.optim_wrapper.optimizer)
    if amp:
        wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    return Config(
        dict(
            model=model,
            default_scope='mmpretrain',
            work_dir=folder,
            train_dataloader=dict(
                batch_size=batch,
                num_workers=0,
                dataset=dataset,
                sampler=sampler,
                collate_fn=dict(type='pseudo_collate')),
            optim_wrapper=wrapper,
            train_cfg=dict(type='Within', max_iters=1),
            custom_hooks=hooks or [],
            default_hooks=dict(logger=None, checkpoint=None, timer=None),
            visualizer=dict(type='Visualizer', vis_backends=[]),
            env_cfg=dict(mp_cfg=dict(mp_start_method='spawn')),
            log_level='WARNING',
            randomness=dict(seed=0)))


def serve(cfg: dict[str, Any], device: torch.device, threads: int,
          connection: Connection) -> None:
    """Build a variant; take a step and say its time and loss when asked."""
    torch.set_num_threads(threads)
    compat.quiet()

    def then(runner: Runner) -> None:
        data = next(iter(runner.train_dataloader))
        data['inputs'] = [one.to(device) for one in data['inputs']]
        data['data_samples'] = [one.to(device) for one in data['data_samples']]
        while connection.recv():
            start = clock(device)
            # What mmengine's loops do in an iteration.
            runner.call_hook('before_train_iter', batch_idx=0, data_batch=data)
            losses = runner.model.train_step(
                data, optim_wrapper=runner.optim_wrapper)
            connection.send((clock(device) - start, losses['loss'].item()))

    Within.then = staticmethod(then)  # type: ignore[method-assign]
    config = Config(cfg)
    compat.prepare_amp(config)
    Runner.from_cfg(config).train()


class Process:
    """A variant in a process of its own, which takes a step when asked."""

    def __init__(self, name: str, cfg: Config, device: torch.device) -> None:
        self._name = name
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(
            target=serve,
            args=(cfg.to_dict(), device, torch.get_num_threads(), theirs),
            daemon=True)
        self._process.start()
        theirs.close()

    def step(self) -> tuple[float, float]:
        """Seconds and loss of a step."""
        try:
            self._connection.send(True)
            return self._connection.recv()
        except (EOFError, OSError):
            sys.exit(f'step.py: the process of {self._name!r} ended')

    def end(self) -> None:
        """Let it finish."""
        self._connection.send(False)
        self._process.join()


def save_weights(cfg: Config, folder: str) -> None:
    """Write random weights for a variant's networks, the same every time."""
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel('WARNING')
    for name, network in (('teacher', cfg.model.teacher),
                          ('student', cfg.model.architecture)):
        network = ConfigDict(network)
        network.pop('init_cfg', None)
        built = MODELS.build(network)
        built.init_weights()
        torch.save(built.state_dict(), f'{folder}/{name}.pth')


def build_cache(cfg: Config, folder: str) -> None:
    """Compute a cached teacher's answers, by the tool for it."""
    path = f'{folder}/cached.py'
    Config(
        dict(
            cfg.to_dict(),
            custom_imports=dict(imports=[Path(__file__).stem]))).dump(path)
    done = subprocess.run(
        [sys.executable, CACHE_TEACHER, path],
        # sys.path starts with this file's folder.
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'step.py: no cache could be built: {done.stderr[-2000:]}')


def measure(args: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """Rows of the result."""
    device = torch.device(args.device)
    size, batch, classes = PAIRS[args.pair]
    configs = {
        name: make_config(args.pair, folder, **VARIANTS[name])
        for name in VARIANTS if name in ('stock', *args.variants)}
    save_weights(configs['stock'], folder)
    cached = [cfg for cfg in configs.values() if 'CachedTeacher' in str(cfg)]
    if cached:
        build_cache(cached[0], folder)
    processes = {
        name: Process(name, cfg, device) for name, cfg in configs.items()}
    loss = {name: one.step()[1] for name, one in processes.items()}
    runs: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(args.repeats):
        for name, one in processes.items():
            # What a process frees the system gives to the others, so that
            # its next step is slower than a training's.
            one.step()
            runs[name].append(one.step()[0])
    for one in processes.values():
        one.end()
    times = {name: summary(seconds) for name, seconds in runs.items()}
    return [{
        'pair': args.pair,
        'variant': name,
        'pixels': size,
        'batch': batch,
        'classes': classes,
        'milliseconds': f'{1e3 * median:.4g}',
        'spread': f'{1e3 * spread:.2g}',
        'images_per_second': f'{batch / median:.4g}',
        'speedup': f'{times["stock"].median / median:.3f}',
        'first_loss': f'{loss[name]:.8g}',
        'repeats': args.repeats,
        **conditions(device),
    } for name, (median, spread) in times.items()]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    one = rows[0]
    table = Table(
        'variant', 'ms (IQR)', 'images/s', 'speed-up', 'first loss',
        title=f'{one["pair"]}: {one["pixels"]} px, batch {one["batch"]}, '
        f'{one["classes"]} classes, {one["threads"]} thread(s), '
        f'torch {one["torch"]}, {one["device"]}')
    for row in rows:
        table.add_row(row['variant'], f'{row["milliseconds"]} '
                      f'({row["spread"]})', row['images_per_second'],
                      row['speedup'], row['first_loss'])
    Console().print(table)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--pair', choices=PAIRS, default='imagenet')
    parser.add_argument(
        '--variants',
        nargs='+',
        choices=VARIANTS,
        default=list(VARIANTS),
        help='which to measure; "stock" always is. All are in memory at once: '
        'name few where that is short')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--csv', type=Path, help='file to add the rows to')
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error('--repeats must be at least 2')
    return args


def main() -> None:
    """Measure and print; add to the result file if there is one."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    compat.quiet()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, folder)
    show(rows)
    if args.csv is not None:
        append_rows(args.csv, rows)


if __name__ == '__main__':
    main()
