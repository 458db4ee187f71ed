"""Time and memory of the WSLD loss, forward and backward, against mmrazor's.

Both run interleaved in one process on the same float32 logits. mmrazor's
loss takes two-dimensional logits only; dense ones are rearranged to rows
first, within the measurement, as its user would have to.
"""
from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table

import wsld_plugin

SHAPES = [(256, 1000), (2048, 32000), (2, 19, 512, 1024)]
FIELDS = ('shape', 'loss', 'milliseconds', 'spread', 'speedup',
          'tensors_above_inputs', 'device', 'dtype', 'threads', 'torch',
          'python', 'date')
Step = Callable[[], None]


def make_steps(shape: tuple[int, ...], tau: float,
               device: torch.device) -> dict[str, Step]:
    """One forward and backward pass of each loss on equal logits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = ((3 * torch.randn(shape, generator=generator)).to(
        device) for _ in range(2))
    labels = torch.randint(
        shape[1], (shape[0], *shape[2:]), generator=generator).to(device)

    student.requires_grad_()

    def as_rows(logits: torch.Tensor) -> torch.Tensor:
        return logits.movedim(1, -1).reshape(-1, shape[1])

    def step(loss: Callable[[], torch.Tensor]) -> Step:

        def run() -> None:
            loss().backward()
            student.grad = None

        return run

    common = dict(tau=tau, loss_weight=2.5)
    theirs = MODELS.build(
        dict(type='mmrazor.WSLD', num_classes=shape[1], **common))
    ours = MODELS.build(dict(type='WSLDLoss', eps=1e-7, **common))
    return {
        'mmrazor': step(lambda: theirs(
            as_rows(student), as_rows(teacher), labels.flatten())),
        'wsld_plugin': step(lambda: ours(student, teacher, labels)),
    }


def clock(device: torch.device) -> float:
    """Seconds now, after all work queued on the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(step: Step, device: torch.device) -> int:
    """Bytes that a step holds at most above what was there before."""
    step()
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def measure(shape: tuple[int, ...], tau: float, repeats: int,
            device: torch.device) -> list[dict]:
    """Rows of the result for one shape."""
    steps = make_steps(shape, tau, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    # Small shapes are over in a millisecond; more of them fit the time.
    repeats = max(repeats, 10**8 // torch.Size(shape).numel())
    for i in range(repeats + 1):
        for name, step in steps.items():
            start = clock(device)
            step()
            if i:  # The first round warms up.
                times[name].append(clock(device) - start)
    medians = {name: statistics.median(t) for name, t in times.items()}
    size = 4 * torch.Size(shape).numel()
    name = torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'
    result = []
    for loss, step in steps.items():
        quartiles = statistics.quantiles(times[loss], n=4)
        result.append(
            dict(
                zip(FIELDS, (
                    'x'.join(map(str, shape)), loss,
                    f'{1e3 * medians[loss]:.2f}',
                    f'{1e3 * (quartiles[2] - quartiles[0]):.2f}',
                    f'{medians["mmrazor"] / medians[loss]:.2f}',
                    f'{peak_memory(step, device) / size:.2f}', name,
                    'float32', torch.get_num_threads(), torch.__version__,
                    platform.python_version(), date.today().isoformat()))))
    return result


def main() -> None:
    """Measure, print a table, write CSV if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tau', type=float, default=2.0)
    parser.add_argument(
        '--repeats', type=int, default=15, help='at least, of each loss')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', type=Path, help='CSV file to write')
    args = parser.parse_args()
    if args.repeats < 2:
        sys.exit('loss.py: --repeats must be at least 2')
    torch.set_num_threads(args.threads)
    wsld_plugin.compat.quiet()
    rows = []
    table = Table('shape', 'loss', 'ms (IQR)', 'speed-up', 'memory',
                  caption='memory: tensors of the logits\' size at the peak, '
                  'above the inputs')
    for shape in SHAPES:
        for row in measure(shape, args.tau, args.repeats,
                           torch.device(args.device)):
            rows.append(row)
            table.add_row(row['shape'], row['loss'],
                          f'{row["milliseconds"]} ({row["spread"]})',
                          row['speedup'], row['tensors_above_inputs'])
    Console().print(table)
    print(f'torch {torch.__version__}, {rows[0]["device"]}, float32, '
          f'{args.threads} thread(s), tau {args.tau}')
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open('w', newline='') as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
