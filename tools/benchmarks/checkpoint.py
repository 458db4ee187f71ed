"""Size and time of a checkpoint, against those of mmengine's own hook.

ResNet-34 to ResNet-18 of 1000 classes, after one step of training with a
teacher from a file whose BatchNorm statistics move. The two hooks take turns
on the same state.
"""
from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from wsld_plugin import compat
from wsld_plugin.hooks import DistillCheckpointHook

CONFIGS = Path(__file__).parents[2] / 'configs'
FIELDS = ('hook', 'milliseconds', 'spread', 'megabytes', 'student_megabytes',
          'torch', 'date')


def trained(folder: Path) -> Runner:
    """A runner after one step, its optimizer's state included."""
    cfg = Config.fromfile(CONFIGS / 'wsld_r34_r18_in1k.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(cfg.model.teacher)
    torch.save(teacher.state_dict(), folder / 'teacher.pth')
    cfg.model.teacher_ckpt = str(folder / 'teacher.pth')
    cfg.work_dir = str(folder)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    cfg.train_dataloader = Config.fromfile(
        CONFIGS / 'wsld_r34_r18_digits.py').train_dataloader
    cfg.train_dataloader.update(batch_size=2, num_workers=0)
    cfg.train_dataloader.dataset.indices = 2
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def measure(runner: Runner, folder: Path,
            repeats: int) -> list[dict[str, str]]:
    """Rows of the result."""
    hooks = {
        'mmengine': CheckpointHook(interval=1, out_dir=str(folder / 'theirs')),
        'wsld_plugin': DistillCheckpointHook(
            interval=1, out_dir=str(folder / 'ours')),
    }
    for hook in hooks.values():
        hook.before_train(runner)
    times: dict[str, list[float]] = {name: [] for name in hooks}
    for i in range(repeats + 1):
        for name, hook in hooks.items():
            runner.hooks.append(hook)
            start = time.perf_counter()
            hook.after_train_epoch(runner)
            if i:  # The first round warms up.
                times[name].append(time.perf_counter() - start)
            runner.hooks.remove(hook)
    rows = []
    for name, hook in hooks.items():
        path = Path(hook.last_ckpt)
        student = path.with_name(f'{path.stem}_student.pth')
        quartiles = statistics.quantiles(times[name], n=4)
        rows.append(
            dict(
                zip(FIELDS, (
                    name, f'{1e3 * statistics.median(times[name]):.0f}',
                    f'{1e3 * (quartiles[2] - quartiles[0]):.0f}',
                    f'{path.stat().st_size / 1e6:.1f}',
                    f'{student.stat().st_size / 1e6:.1f}'
                    if student.exists() else '', torch.__version__,
                    date.today().isoformat()))))
    return rows


def main() -> None:
    """Measure, print a table, write CSV if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument(
        '--folder',
        help='folder on the disk to measure; that of temporary files by '
        'default')
    parser.add_argument('--out', type=Path, help='CSV file to write')
    args = parser.parse_args()
    if args.repeats < 2:
        sys.exit('checkpoint.py: --repeats must be at least 2')
    compat.quiet()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = measure(trained(Path(folder)), Path(folder), args.repeats)
    table = Table('hook', 'ms (IQR)', 'checkpoint MB', 'student MB')
    for row in rows:
        table.add_row(row['hook'], f'{row["milliseconds"]} ({row["spread"]})',
                      row['megabytes'], row['student_megabytes'])
    Console().print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open('w', newline='') as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
