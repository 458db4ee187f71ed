"""Time and memory of the WSLD loss, forward and backward, against mmrazor's.

All run interleaved in one process on the same float32 logits. mmrazor's
loss takes two-dimensional logits only; dense ones are rearranged to rows
first, within the measurement, as its user would have to. The floor is what
reading both logits and writing one gradient takes.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import (
    RESULTS,
    Step,
    append_rows,
    conditions,
    interleave,
    peak_memory,
)
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table

import wsld_plugin

SHAPES = [(256, 1000), (2048, 32000), (2, 19, 512, 1024), (64, 100)]


def make_steps(shape: tuple[int, ...], tau: float, device: torch.device,
               compiled: bool) -> dict[str, Step]:
    """One forward and backward pass of each loss on equal logits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = ((3 * torch.randn(shape, generator=generator)).to(
        device) for _ in range(2))
    labels = torch.randint(
        shape[1], (shape[0], *shape[2:]), generator=generator).to(device)
    student.requires_grad_()
    written = torch.empty_like(teacher)

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
    steps = {
        'mmrazor': step(lambda: theirs(
            as_rows(student), as_rows(teacher), labels.flatten())),
        'wsld_plugin': step(lambda: ours(student, teacher, labels)),
    }
    if compiled:
        fast = torch.compile(ours)
        steps['wsld_plugin, compiled'] = step(
            lambda: fast(student, teacher, labels))
    # Without a graph: the traffic alone.
    steps['floor'] = lambda: torch.add(student.data, teacher, out=written)
    return steps


def measure(shape: tuple[int, ...], tau: float, repeats: int,
            device: torch.device, compiled: bool) -> list[dict[str, Any]]:
    """Rows of the result for one shape."""
    steps = make_steps(shape, tau, device, compiled)
    # Small shapes are over in a millisecond; more of them fit the time.
    repeats = max(repeats, 10**8 // torch.Size(shape).numel())
    times = interleave(steps, repeats, device, warm_up=2)
    size = 4 * torch.Size(shape).numel()
    machine = conditions(device)
    return [{
        'shape': 'x'.join(map(str, shape)),
        'loss': name,
        'tau': tau,
        'dtype': 'float32',
        'milliseconds': f'{1e3 * times[name].median:.3g}',
        'spread': f'{1e3 * times[name].spread:.2g}',
        'speedup': f'{times["mmrazor"].median / times[name].median:.2f}',
        'tensors_above_inputs': f'{peak_memory(step, device) / size:.2f}',
        'repeats': repeats,
        **machine,
    } for name, step in steps.items()]


def main() -> None:
    """Measure, print a table, add to the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--tau', type=float, default=2.0)
    parser.add_argument(
        '--repeats', type=int, default=11, help='at least, of each loss')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--no-compile', action='store_true', help='leave torch.compile out')
    parser.add_argument(
        '--out', type=Path, default=RESULTS / 'loss.csv', help='CSV file')
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
                           torch.device(args.device), not args.no_compile):
            rows.append(row)
            table.add_row(row['shape'], row['loss'],
                          f'{row["milliseconds"]} ({row["spread"]})',
                          row['speedup'], row['tensors_above_inputs'])
    Console().print(table)
    print(f'torch {torch.__version__}, {rows[0]["device"]}, float32, '
          f'{args.threads} thread(s), tau {args.tau}')
    append_rows(args.out, rows)


if __name__ == '__main__':
    main()
