"""Time of a distillation step: stock mmrazor against every lever.

Each variant is built by mmengine's Runner from the shipped config, has a
process of its own, so that none meets another's memory, and its batch already
on the device; they take turns of two steps, of which the second counts.
"stock" is mmrazor's distiller with mmrazor's WSLD and nothing of this package.
Started by torchrun, every process has its own copies, wrapped for distributed
training.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import (
    RESULTS,
    append_rows,
    clock,
    conditions,
    interleave,
    peak_memory,
    summary,
)
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config, ConfigDict
from mmengine.model import is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS, MODELS
from rich.console import Console
from rich.table import Table
from torch import nn

from wsld_plugin import compat

CONTEXT = multiprocessing.get_context('spawn')
RANK = int(os.environ.get('RANK', 0))
WORLD_SIZE = int(os.environ.get('WORLD_SIZE', 1))
CONFIGS = Path(__file__).parents[2] / 'configs'
CACHE_TEACHER = Path(__file__).parents[1] / 'cache_teacher.py'
# Side of a picture, batch, classes.
PAIRS = {'imagenet': (224, 16, 1000), 'cifar': (32, 64, 100)}
PARTS = ('data', 'teacher', 'student forward', 'loss', 'backward',
         'optimizer', 'rest')
HOOK = dict(type='FastStepHook')
BFLOAT16 = dict(type='FastStepHook', teacher_dtype='bfloat16')
# Name: keywords of `make_config`.
VARIANTS: dict[str, dict[str, Any]] = {
    'stock': dict(stock=True),
    'WSLDLoss': dict(),
    'same numerics': dict(hooks=[HOOK]),
    'same numerics, compiled teacher':
    dict(hooks=[dict(HOOK, compile_teacher=True)]),
    'bfloat16 teacher': dict(hooks=[BFLOAT16]),
    'bfloat16': dict(hooks=[BFLOAT16], amp=True),
    'bfloat16, compiled teacher':
    dict(hooks=[dict(BFLOAT16, compile_teacher=True)], amp=True),
    'cached': dict(hooks=[HOOK], cached=True),
    'cached, bfloat16': dict(hooks=[HOOK], cached=True, amp=True),
    'student alone': dict(alone=True),
    'student alone, same numerics': dict(hooks=[HOOK], alone=True),
    'student alone, bfloat16': dict(hooks=[HOOK], alone=True, amp=True),
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
            dict(
                img=rng.integers(256, size=shape, dtype=np.uint8),
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
                batch: int,
                classes: int,
                folder: str,
                *,
                stock: bool = False,
                hooks: list[dict] | None = None,
                amp: bool = False,
                cached: bool = False,
                alone: bool = False) -> Config:
    """Config of one variant, from the shipped one."""
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_in1k-evalbn.py')
    size = PAIRS[pair][0]
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
        # The sampler deals them out to the processes.
        number=batch * WORLD_SIZE,
        size=size,
        classes=classes,
        pipeline=[dict(type='PackInputs')])
    sampler = dict(type='DefaultSampler', shuffle=False)
    if cached:
        dataset = dict(type='SeededViews', views=1, dataset=dataset)
        sampler = dict(type='ViewSampler', shuffle=False)
        model.teacher = dict(
            type='CachedTeacher',
            cache=f'{folder}/cache-{RANK}',
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
            launcher='pytorch' if 'RANK' in os.environ else 'none',
            env_cfg=dict(
                dist_cfg=dict(backend='nccl'),
                mp_cfg=dict(mp_start_method='spawn')),
            log_level='WARNING',
            randomness=dict(seed=0)))


class Variant:
    """A runner that stands at its first step, and its batch."""

    def __init__(self, runner: Runner, device: torch.device) -> None:
        self.runner, self.device = runner, device
        self.data = next(iter(runner.train_dataloader))
        self.data['inputs'] = [x.to(device) for x in self.data['inputs']]
        self.data['data_samples'] = [
            sample.to(device) for sample in self.data['data_samples']
        ]

    @property
    def model(self) -> Any:
        """The model without the wrapper of distributed training."""
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    def step(self) -> dict[str, torch.Tensor]:
        """What mmengine's loops do in an iteration."""
        runner = self.runner
        runner.call_hook(
            'before_train_iter', batch_idx=0, data_batch=self.data)
        return runner.model.train_step(
            self.data, optim_wrapper=runner.optim_wrapper)

    def loss(self) -> float:
        """Loss of a step."""
        return self.step()['loss'].item()

    def seconds(self) -> float:
        """Time of a step."""
        start = clock(self.device)
        self.step()
        return clock(self.device) - start

    def memory(self) -> int:
        """Bytes that a step holds at most above what was there before."""
        return peak_memory(self.step, self.device)

    def parts(self, repeats: int) -> dict[str, float]:
        """Median seconds of a step's parts; `rest` is what is left of it."""
        model, optimizer = self.model, self.runner.optim_wrapper
        parts = {
            'data': (model.data_preprocessor, 'forward'),
            'student forward': (getattr(model, 'architecture', model), 'loss'),
            'backward': (optimizer, 'backward'),
            'optimizer': (optimizer, 'step'),
        }
        if hasattr(model, 'teacher'):
            parts['teacher'] = (model.teacher, 'forward')
            parts['loss'] = (model.distiller, 'compute_distill_losses')
        runs: dict[str, list[float]] = {name: [] for name in [*parts, 'rest']}
        for _ in range(repeats):
            spent: dict[str, list[float]] = {name: [] for name in parts}
            with ExitStack() as stack:
                for name, part in parts.items():
                    stack.enter_context(timed(*part, self.device, spent[name]))
                whole = self.seconds()
            for name, seconds in spent.items():
                runs[name].append(sum(seconds))
            runs['rest'].append(whole - sum(map(sum, spent.values())))
        return {
            name: statistics.median(seconds)
            for name, seconds in runs.items()
        }


class Process:
    """A variant in a process of its own, which does what it is asked."""

    def __init__(self, name: str, cfg: Config, device: torch.device,
                 index: int) -> None:
        self._name = name
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(
            target=serve,
            args=(cfg.to_dict(), device, torch.get_num_threads(), index,
                  theirs),
            daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the :class:`Variant`."""
        try:
            self._connection.send((method, *args))
            return self._connection.recv()
        except (EOFError, OSError):
            sys.exit(f'step.py: the process of {self._name!r} ended')

    def end(self) -> None:
        """Let it finish."""
        self._connection.send(None)
        self._process.join()


def serve(cfg: dict[str, Any], device: torch.device, threads: int, index: int,
          connection: Connection) -> None:
    """Build a variant and do what is asked until nothing is."""
    torch.set_num_threads(threads)
    compat.quiet()
    # A daemon, which this process is, may not start torch's compiling ones.
    os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')
    if 'MASTER_PORT' in os.environ:
        # The copies of each variant meet at a port of their own.
        os.environ['MASTER_PORT'] = str(
            int(os.environ['MASTER_PORT']) + 1 + index)
        os.environ.pop('TORCHELASTIC_USE_AGENT_STORE', None)

    def then(runner: Runner) -> None:
        variant = Variant(runner, device)
        while (asked := connection.recv()) is not None:
            method, *args = asked
            connection.send(getattr(variant, method)(*args))

    Within.then = staticmethod(then)  # type: ignore[method-assign]
    config = Config(cfg)
    compat.prepare_amp(config)
    compat.prepare_distributed(config)
    Runner.from_cfg(config).train()


def forward_flops(network: dict[str, Any], size: int) -> float:
    """Arithmetic of a network's forward pass over one image."""
    network = ConfigDict(network)
    network.pop('init_cfg', None)
    built = MODELS.build(network).eval()
    forward = built.forward
    built.forward = lambda x: forward(x, mode='tensor')
    counter = FlopAnalyzer(built, (torch.zeros(1, 3, size, size), ))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    products = counter.by_operator()
    return 2.0 * sum(products[name] for name in ('conv', 'linear'))


def peak_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Best multiply-add rate seen here, in operations a second.

    Matrix products and 3x3 convolutions, each at a size that fits well.
    """
    side = 2048 if device.type == 'cpu' else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)
    n, c, hw = (8, 256, 28) if device.type == 'cpu' else (256, 512, 28)
    conv = nn.Conv2d(c, c, 3, padding=1, bias=False).to(device, dtype)
    conv = conv.to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(n, c, hw, hw, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)
    work = {
        'product': (lambda: a @ a, 2.0 * side**3),
        'convolution': (lambda: conv(x), 2.0 * n * hw * hw * c * c * 9),
    }
    times = interleave({name: f for name, (f, _) in work.items()}, 5, device)
    return max(ops / times[name].median for name, (_, ops) in work.items())


@contextmanager
def timed(owner: Any, name: str, device: torch.device,
          into: list[float]) -> Iterator[None]:
    """Add up the seconds that a method takes while the context lasts."""
    original: Callable[..., Any] = getattr(owner, name)
    within = False

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal within
        if within:  # A forward pass that calls itself in another mode.
            return original(*args, **kwargs)
        within, start = True, clock(device)
        result = original(*args, **kwargs)
        within = False
        into.append(clock(device) - start)
        return result

    before = owner.__dict__.get(name)
    owner.__dict__[name] = wrapper
    try:
        yield
    finally:
        del owner.__dict__[name]
        if before is not None:
            owner.__dict__[name] = before


def save_weights(cfg: Config, folder: str) -> None:
    """Write random weights for a variant's networks, the same every time."""
    torch.manual_seed(0)
    for name, network in (('teacher', cfg.model.teacher),
                          ('student', cfg.model.architecture)):
        network = ConfigDict(network)
        network.pop('init_cfg', None)
        built = MODELS.build(network)
        built.init_weights()
        torch.save(built.state_dict(), f'{folder}/{name}.pth')


def build_cache(cfg: Config, folder: str) -> None:
    """Compute a cached teacher's answers, by the tool for it."""
    path = f'{folder}/cached-{RANK}.py'
    Config(
        dict(
            cfg.to_dict(),
            launcher='none',
            custom_imports=dict(imports=[Path(__file__).stem]))).dump(path)
    subprocess.run(
        [sys.executable, CACHE_TEACHER, path],
        # sys.path starts with this file's folder.
        env=dict({k: v for k, v in os.environ.items() if k != 'RANK'},
                 PYTHONPATH=os.pathsep.join(sys.path)),
        stdout=subprocess.DEVNULL,
        check=True)


def measure_pair(args: argparse.Namespace, batch: int, classes: int,
                 names: list[str], folder: str) -> list[dict[str, Any]]:
    """Rows of the result for one pair of networks at one size."""
    device = torch.device(args.device)
    size = PAIRS[args.pair][0]
    configs = {
        name: make_config(args.pair, batch, classes, folder, **VARIANTS[name])
        for name in names
    }
    save_weights(configs['stock'], folder)
    networks = configs['stock'].model
    teacher = forward_flops(networks.teacher, size)
    student = forward_flops(networks.architecture, size)
    for cfg in configs.values():
        if cfg.model.get('teacher', {}).get('type') == 'CachedTeacher':
            build_cache(cfg, folder)
            break
    processes = {
        name: Process(name, cfg, device, index)
        for index, (name, cfg) in enumerate(configs.items())
    }
    loss = {name: one.ask('loss') for name, one in processes.items()}
    runs: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name, one in processes.items():
            # What a process frees the system gives to the others, so that
            # its next step is slower than a training's.
            one.ask('seconds')
            runs[name].append(one.ask('seconds'))
    times = {name: summary(seconds) for name, seconds in runs.items()}
    rates = {
        dtype: peak_rate(dtype, device)
        for dtype in (torch.float32, torch.bfloat16)
    }
    rows = []
    for name, one in processes.items():
        amp = VARIANTS[name].get('amp')
        rate = rates[torch.bfloat16 if amp else torch.float32]
        # A backward pass takes twice what the forward pass does.
        online = not VARIANTS[name].keys() & {'cached', 'alone'}
        work = batch * (3 * student + teacher * online)
        median, spread = times[name]
        parts = one.ask('parts', max(3, args.repeats // 2))
        memory = one.ask('memory')
        one.end()
        rows.append({
            'pair': args.pair,
            'variant': name,
            'pixels': size,
            'batch': batch,
            'classes': classes,
            'processes': WORLD_SIZE,
            'dtype': 'bfloat16' if amp else 'float32',
            'milliseconds': f'{1e3 * median:.4g}',
            'spread': f'{1e3 * spread:.2g}',
            'images_per_second':
            f'{batch * WORLD_SIZE / median:.4g}',
            'speedup': f'{times[names[0]].median / median:.3f}',
            'first_loss': f'{loss[name]:.8g}',
            'share_of_peak': f'{work / median / rate:.3f}',
            'peak_gflops': f'{rate / 1e9:.0f}',
            'memory_mb': f'{memory / 1e6:.0f}',
            **{
                f'{part}_ms'.replace(' ', '_'):
                f'{1e3 * parts.get(part, 0.0):.4g}'
                for part in PARTS
            },
            'repeats': args.repeats,
            **conditions(device),
        })
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of one pair as two tables."""
    one = rows[0]
    title = (f'{one["pair"]}: {one["pixels"]} px, batch {one["batch"]}, '
             f'{one["classes"]} classes, {one["processes"]} process(es), '
             f'{one["threads"]} thread(s) each, torch {one["torch"]}, '
             f'{one["device"]}')
    console = Console()
    table = Table('variant', 'ms (IQR)', 'images/s', 'speed-up', 'of peak',
                  'first loss', 'memory MB', title=title)
    parts = Table('where the ms go', *PARTS)
    for row in rows:
        table.add_row(row['variant'], f'{row["milliseconds"]} '
                      f'({row["spread"]})', row['images_per_second'],
                      row['speedup'], row['share_of_peak'],
                      row['first_loss'], row['memory_mb'])
        parts.add_row(
            row['variant'],
            *(row[f'{part}_ms'.replace(' ', '_')] for part in PARTS))
    console.print(table)
    console.print(parts)


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
    parser.add_argument(
        '--batch', type=int, nargs='+', help='images a process; several for '
        'the cost of growth')
    parser.add_argument(
        '--classes', type=int, nargs='+', help='several for the cost of '
        'growth')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--out', type=Path, default=RESULTS / 'step.csv', help='CSV file')
    args = parser.parse_args()
    if args.repeats < 2:
        sys.exit('step.py: --repeats must be at least 2')
    return args


def main() -> None:
    """Measure every size, print, add to the result file."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    compat.quiet()
    if args.device == 'cuda' and 'LOCAL_RANK' in os.environ:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    names = [name for name in VARIANTS
             if name == 'stock' or name in args.variants]
    _, batch, classes = PAIRS[args.pair]
    for n in args.batch or [batch]:
        for c in args.classes or [classes]:
            with tempfile.TemporaryDirectory() as folder:
                rows = measure_pair(args, n, c, names, folder)
            if RANK == 0:
                show(rows)
                append_rows(args.out, rows)


if __name__ == '__main__':
    main()
