"""Time of a distillation step: stock mmrazor against each lever.

Each variant is built by mmengine's Runner from the shipped config, has a
process of its own, so that none meets another's memory, and its batch already
on the device; they take turns of two steps, of which the second counts.
"stock" is mmrazor's distiller with mmrazor's WSLD and nothing of this package.
"""
from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from copy import deepcopy
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measuring import clock, conditions, parser, report, summary
from mmengine.config import Config
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmpretrain.registry import MODELS
from torch import nn

from wsld_plugin import caching, compat

CONTEXT = multiprocessing.get_context('spawn')
CONFIGS = Path(__file__).parents[2] / 'configs'
# Config, side of a picture, batch.
PAIRS = {'imagenet': ('wsld_r34_r18_in1k-evalbn', 224, 16),
         'cifar': ('wsld_wrn-40-2_wrn-16-2_cifar100', 32, 64)}
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
        return self.runner.model


def make_config(pair: str, folder: str, *, stock: bool = False,
                hooks: list[dict] | None = None, amp: bool = False,
                cached: bool = False, alone: bool = False) -> Config:
    """Config of one variant, from the shipped one."""
    name, size, batch = PAIRS[pair]
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    model = cfg.model
    # The same weights for all, so that their first losses can be compared.
    model.update(teacher_norm_eval=True, teacher_ckpt=f'{folder}/teacher.pth')
    model.architecture.init_cfg = dict(
        type='Pretrained', checkpoint=f'{folder}/student.pth')
    losses = model.distiller.distill_losses
    if stock:
        losses.loss_wsld.update(
            type='WSLD', num_classes=model.teacher.head.num_classes)
    # Digits: arithmetic takes as long on anything else.
    dataset = dict(
        type='DigitsDataset', split='train', indices=batch,
        pipeline=[dict(type='Resize', scale=size), dict(type='PackInputs')])
    sampler = dict(type='DefaultSampler', shuffle=False)
    if cached:
        dataset = dict(type='SeededViews', views=1, dataset=dataset)
        sampler = dict(type='ViewSampler', shuffle=False)
        model.teacher = dict(
            type='CachedTeacher', cache=f'{folder}/cache',
            teacher=model.teacher, teacher_ckpt=model.teacher_ckpt)
        model.teacher_ckpt = None
    wrapper = dict(optimizer=cfg.optim_wrapper.optimizer)
    if amp:
        wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    return Config(dict(
        model=model.architecture if alone else model,
        default_scope='mmpretrain',
        work_dir=folder,
        train_dataloader=dict(
            batch_size=batch, num_workers=0, dataset=dataset, sampler=sampler,
            collate_fn=dict(type='pseudo_collate')),
        optim_wrapper=wrapper,
        train_cfg=dict(type='Within', max_iters=1),
        custom_hooks=hooks or [],
        default_hooks=dict(logger=None, checkpoint=None, timer=None),
        visualizer=dict(type='Visualizer', vis_backends=[]),
        env_cfg=dict(mp_cfg=dict(mp_start_method='spawn')),
        log_level='WARNING',
        randomness=dict(seed=0)))


def save_weights(cfg: Config, folder: str) -> None:
    """Write random weights for a variant's networks, the same every time."""
    torch.manual_seed(0)
    for name, network in (('teacher', cfg.model.teacher),
                          ('student', cfg.model.architecture)):
        built = MODELS.build(dict(deepcopy(network), init_cfg=None))
        built.init_weights()
        torch.save(built.state_dict(), f'{folder}/{name}.pth')


def serve(cfg: dict[str, Any], device: torch.device, threads: int,
          asked: Connection) -> None:
    """Build a variant; take a step and say its time and loss when asked."""
    torch.set_num_threads(threads)
    compat.quiet()

    def then(runner: Runner) -> None:
        data = next(iter(runner.train_dataloader))
        for key, values in data.items():
            data[key] = [one.to(device) for one in values]
        while asked.recv():
            start = clock(device)
            # What mmengine's loops do in an iteration.
            runner.call_hook('before_train_iter', batch_idx=0, data_batch=data)
            losses = runner.model.train_step(
                data, optim_wrapper=runner.optim_wrapper)
            asked.send((clock(device) - start, losses['loss'].item()))

    Within.then = staticmethod(then)  # type: ignore[method-assign]
    config = Config(cfg)
    compat.prepare_amp(config)
    Runner.from_cfg(config).train()


def begin(cfg: Config, device: torch.device) -> Callable[[], Any]:
    """Start a variant's process; what is returned takes a step in it."""
    ours, theirs = CONTEXT.Pipe()
    CONTEXT.Process(
        target=serve, daemon=True,
        args=(cfg.to_dict(), device, torch.get_num_threads(), theirs)).start()
    theirs.close()

    def step() -> tuple[float, float]:
        ours.send(True)
        return ours.recv()

    return step


def measure(pair: str, variants: list[str], repeats: int,
            device: torch.device, folder: str) -> list[dict[str, Any]]:
    """Rows of the result."""
    configs = {name: make_config(pair, folder, **VARIANTS[name])
               for name in VARIANTS if name in ('stock', *variants)}
    save_weights(configs['stock'], folder)
    cached = [cfg for cfg in configs.values() if 'CachedTeacher' in str(cfg)]
    if cached:
        caching.build_cache(deepcopy(cached[0]))
    steps = {name: begin(cfg, device) for name, cfg in configs.items()}
    loss = {name: step()[1] for name, step in steps.items()}
    runs: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            # What a process frees the system gives to the others, so that
            # its next step is slower than a training's.
            step()
            runs[name].append(step()[0])
    times = {name: summary(seconds) for name, seconds in runs.items()}
    _, size, batch = PAIRS[pair]
    return [{
        'pair': pair, 'variant': name, 'pixels': size, 'batch': batch,
        'classes': configs['stock'].model.teacher.head.num_classes,
        'milliseconds': f'{1e3 * median:.4g}',
        'spread': f'{1e3 * spread:.2g}',
        'images_per_second': f'{batch / median:.4g}',
        'speedup': f'{times["stock"].median / median:.3f}',
        'first_loss': f'{loss[name]:.8g}', 'repeats': repeats,
        **conditions(device),
    } for name, (median, spread) in times.items()]


def main() -> None:
    """Measure and print; add to the result file if there is one."""
    take = parser(__doc__, repeats=7)
    take.add_argument('--pair', choices=PAIRS, default='imagenet')
    take.add_argument(
        '--variants', nargs='+', choices=VARIANTS, default=[*VARIANTS],
        help='which to measure; "stock" always is. All are in memory at once: '
        'name few where that is short')
    args = take.parse_args()
    torch.set_num_threads(args.threads)
    compat.quiet()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args.pair, args.variants, args.repeats, args.device,
                       folder)
    report(rows, ['variant', 'milliseconds', 'spread', 'images_per_second',
                  'speedup', 'first_loss'], args.csv)


if __name__ == '__main__':
    main()
