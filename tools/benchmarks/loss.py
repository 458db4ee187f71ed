"""Time and memory of the WSLD loss, forward and backward, against mmrazor's.

All run interleaved in one process on the same logits. mmrazor's loss takes
two-dimensional logits only; dense ones are rearranged to rows first, within
the measurement, as its user would have to. The floor is what reading both
logits and writing one gradient takes.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import measuring
import torch
from mmengine.registry import MODELS

import wsld_plugin

TAU = 2.0
SHAPES = [(256, 1000), (2048, 32000), (2, 19, 512, 1024), (64, 100)]


def make_steps(shape: tuple[int, ...],
               args: argparse.Namespace) -> dict[str, measuring.Step]:
    """One forward and backward pass of each loss on equal logits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = ((3 * torch.randn(shape, generator=generator)).to(
        args.device, getattr(torch, args.dtype)) for _ in range(2))
    labels = torch.randint(shape[1], (shape[0], *shape[2:]),
                           generator=generator).to(args.device)
    student.requires_grad_()
    written = torch.empty_like(teacher)
    common = dict(tau=TAU, loss_weight=2.5)
    theirs = MODELS.build(
        dict(type='mmrazor.WSLD', num_classes=shape[1], **common))
    ours = MODELS.build(dict(type='WSLDLoss', eps=1e-7, **common))

    def rows(logits: torch.Tensor) -> torch.Tensor:
        return logits.movedim(1, -1).reshape(-1, shape[1])

    def step(loss: Callable[..., torch.Tensor], *given: torch.Tensor) -> None:
        loss(student, teacher, *given).backward()
        student.grad = None

    def theirs_by_rows(*tensors: torch.Tensor) -> torch.Tensor:
        student, teacher, labels = tensors
        return theirs(rows(student), rows(teacher), labels.flatten())

    steps: dict[str, measuring.Step] = {
        'mmrazor': partial(step, theirs_by_rows, labels),
        'wsld_plugin': partial(step, ours, labels)}
    # What people distil with that looks at no label.
    for name in ['KLDivergence'] + ['ChannelWiseDivergence'] * (
            len(shape) > 2):
        loss = MODELS.build(dict(
            type=f'mmrazor.{name}', tau=TAU, loss_weight=2.5))
        steps[name] = partial(step, loss)
    if args.compile:
        steps['compiled'] = partial(step, torch.compile(ours), labels)
    # Without a graph: the traffic alone.
    steps['floor'] = partial(torch.add, student.data, teacher, out=written)
    return steps


def measure(shape: tuple[int, ...],
            args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the result for one shape."""
    steps = make_steps(shape, args)
    # Small shapes are over in a millisecond; more of them fit the time.
    numbers = torch.Size(shape).numel()
    repeats = max(args.repeats, 10**8 // numbers)
    times = measuring.interleave(steps, repeats, args.device, warm_up=2)
    size = torch.finfo(getattr(torch, args.dtype)).bits // 8 * numbers
    return [{
        'shape': 'x'.join(map(str, shape)), 'loss': name, 'tau': TAU,
        'dtype': args.dtype,
        'milliseconds': f'{1e3 * times[name].median:.3g}',
        'spread': f'{1e3 * times[name].spread:.2g}',
        'speedup': f'{times["mmrazor"].median / times[name].median:.2f}',
        'tensors_above_inputs':
        f'{measuring.peak_memory(step, args.device) / size:.2f}',
        'repeats': repeats, **measuring.conditions(args.device)
    } for name, step in steps.items()]


def main() -> None:
    """Measure and print a table."""
    take = measuring.parser(__doc__, repeats=11)
    take.add_argument(
        '--dtype', default='float32',
        choices=('float32', 'float16', 'bfloat16', 'float64'))
    take.add_argument(
        '--compile', action='store_true', help='torch.compile, too')
    args = take.parse_args()
    torch.set_num_threads(args.threads)
    wsld_plugin.compat.quiet()
    rows = [row for shape in SHAPES for row in measure(shape, args)]
    measuring.report(rows, [
        'shape', 'loss', 'dtype', 'milliseconds', 'spread', 'speedup',
        'tensors_above_inputs'], args.csv)


if __name__ == '__main__':
    main()
