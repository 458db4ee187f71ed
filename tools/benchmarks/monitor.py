"""Time that WSLDMonitorHook adds to a training step.

Steps without the hook, with it but not looking, and with it looking take
turns in one process, on one batch. The time added is that spent inside the
hook: differences of whole steps are lost in their noise. The first model is
the digits distillation as shipped, whose epochs of four steps end with a line
of the log; the second labels the pixels of large pictures with ResNet-34 and
ResNet-18 under a linear head, and its log has a line for 100 steps.
"""
from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import RESULTS, append_rows, clock, conditions, summary
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import LoggerHook
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from wsld_plugin import compat
from wsld_plugin.hooks import WSLDMonitorHook
from wsld_plugin.losses import WSLDLoss

CONFIGS = Path(__file__).parents[2] / 'configs'
DENSE_SHAPE = (2, 19, 256, 512)
DENSE_INTERVAL = 100
DIGITS_PER_EPOCH = 4
Step = Callable[[], None]


class DenseDistillation(BaseModel):
    """ResNets with a linear head, enlarged to the size of the pictures."""

    def __init__(self) -> None:
        super().__init__()
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            self.student, self.teacher = (
                nn.Sequential(
                    MODELS.build(dict(type='ResNet', depth=depth)),
                    _Classify(DENSE_SHAPE[1])) for depth in (18, 34))
        self.teacher.requires_grad_(False)
        self.wsld = WSLDLoss(tau=2.0, ignore_index=255)

    def forward(self, pictures: Tensor, labels: Tensor,
                mode: str = 'tensor') -> dict[str, Tensor]:
        student = self.student(pictures)
        with torch.no_grad():
            teacher = self.teacher(pictures)
        return dict(
            loss_ce=F.cross_entropy(student, labels),
            loss_wsld=self.wsld(student, teacher, labels))


class _Classify(nn.Module):

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(512, classes, 1)

    def forward(self, features: tuple[Tensor]) -> Tensor:
        return F.interpolate(
            self.classify(features[-1]), scale_factor=32, mode='bilinear')


def digits(folder: str) -> Runner:
    """Runner of the digits distillation, batches of 25."""
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_digits.py')
    cfg.work_dir = folder
    cfg.model.teacher_ckpt = None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.param_scheduler = []
    cfg.custom_hooks = [dict(type='FrozenTeacherHook')]
    cfg.default_hooks.checkpoint = None
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.log_level = 'ERROR'
    return Runner.from_cfg(cfg)


def dense(folder: str) -> Runner:
    """Runner of the dense distillation."""
    n, classes, height, width = DENSE_SHAPE
    generator = torch.Generator().manual_seed(0)
    data = [
        dict(
            pictures=torch.randn(3, height, width, generator=generator),
            labels=torch.randint(
                classes, (height, width), generator=generator))
        for _ in range(n)
    ]
    return Runner(
        DenseDistillation(),
        folder,
        train_dataloader=dict(
            batch_size=n,
            dataset=data,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=DENSE_INTERVAL),
            checkpoint=None),
        log_level='ERROR',
        experiment_name='dense')


class TimedMonitor(WSLDMonitorHook):
    """The hook, and the seconds spent in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent = 0.0

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """As the hook does."""
        self._time(super().before_train_iter, *args, **kwargs)

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """As the hook does."""
        self._time(super().after_train_iter, *args, **kwargs)

    def _add_up(self, *args: Any, **kwargs: Any) -> None:
        self._time(super()._add_up, *args, **kwargs)

    def _time(self, method: Callable[..., None], *args: Any,
              **kwargs: Any) -> None:
        start = clock(self.device)
        method(*args, **kwargs)
        self.spent += clock(self.device) - start


def make_steps(runner: Runner, hook: TimedMonitor) -> dict[str, Step]:
    """The three kinds of step on the runner's first batch."""
    batch: Any = next(iter(runner.train_dataloader))
    hook.before_train(runner)
    logger, = (one for one in runner.hooks if isinstance(one, LoggerHook))

    def step() -> None:
        runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)

    def hooked(batch_idx: int) -> Step:

        def run() -> None:
            hook.before_train_iter(runner, batch_idx, batch)
            step()
            hook.after_train_iter(runner, batch_idx, batch)

        return run

    return {
        'without': step,
        'not looking': hooked(logger.interval),
        'looking': hooked(logger.interval - 1),
    }


def measure(name: str, logits: str, runner: Runner, once_in: int,
            repeats: int) -> list[dict[str, Any]]:
    """Rows of the result for one model."""
    runner.train()
    runner.model.train()
    device = torch.device(get_device())
    hook = TimedMonitor(device)
    steps = make_steps(runner, hook)
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    spent: dict[str, list[float]] = {kind: [] for kind in steps}
    for i in range(repeats + 1):
        for kind, step in steps.items():
            hook.spent = 0.0
            start = clock(device)
            step()
            if i:  # The first round warms up.
                times[kind].append(clock(device) - start)
                spent[kind].append(hook.spent)
    whole = {kind: summary(took) for kind, took in times.items()}
    added = {kind: statistics.median(took) for kind, took in spent.items()}
    mean = (added['looking'] + (once_in - 1) * added['not looking']) / once_in
    percent = 100 * mean / whole['without'].median
    return [{
        'model': name,
        'logits': logits,
        'step': kind,
        'dtype': 'float32',
        'milliseconds': f'{1e3 * took.median:.2f}',
        'spread': f'{1e3 * took.spread:.2f}',
        'in_hook': f'{1e3 * added[kind]:.3f}',
        'looking_once_in': once_in if kind == 'looking' else '',
        'percent_of_training': f'{percent:.3f}' if kind == 'looking' else '',
        **conditions(device),
    } for kind, took in whole.items()]


def main() -> None:
    """Measure, print a table, add to the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--repeats', type=int, default=20, help='of each step; the digits '
        'take ten times as many')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--out', type=Path, default=RESULTS / 'monitor.csv', help='CSV file')
    args = parser.parse_args()
    if args.repeats < 2:
        sys.exit('monitor.py: --repeats must be at least 2')
    torch.set_num_threads(args.threads)
    compat.quiet()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure('digits', '25x10', digits(folder), DIGITS_PER_EPOCH,
                       10 * args.repeats)
        rows += measure('dense', 'x'.join(map(str, DENSE_SHAPE)),
                        dense(folder), DENSE_INTERVAL, args.repeats)
    table = Table('model', 'step', 'ms (IQR)', 'in the hook, ms', 'looking',
                  '% of a training')
    for row in rows:
        once_in = row['looking_once_in']
        table.add_row(row['model'], row['step'],
                      f'{row["milliseconds"]} ({row["spread"]})',
                      row['in_hook'], f'once in {once_in}' if once_in else '',
                      row['percent_of_training'])
    Console().print(table)
    print(f'torch {torch.__version__}, {rows[0]["device"]}, float32, '
          f'{args.threads} thread(s)')
    append_rows(args.out, rows)


if __name__ == '__main__':
    main()
