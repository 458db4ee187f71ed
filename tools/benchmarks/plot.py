"""Draw what step.py measured: where the time of a step goes.

One panel for each pair of networks on each device, from the rows that were
measured last at the pair's own size with one process and one thread.
"""
from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from measuring import RESULTS
from step import PAIRS, PARTS, VARIANTS

Rows = dict[str, dict[str, str]]


def latest(path: Path) -> dict[tuple[str, str], Rows]:
    """The last row of each variant, by pair and device.

    Raises:
        ValueError: If the file has no such row.
    """
    found: dict[tuple[str, str], Rows] = defaultdict(dict)
    with path.open(newline='') as file:
        for row in csv.DictReader(file):
            size = tuple(int(row[key])
                         for key in ('pixels', 'batch', 'classes'))
            if (size == PAIRS[row['pair']]
                    and (row['processes'], row['threads']) == ('1', '1')):
                found[row['pair'], row['device']][row['variant']] = row
    if not found:
        raise ValueError(f'{path} has no rows of one process with one thread '
                         'at the size that step.py has by default')
    return found


def draw(panels: dict[tuple[str, str], Rows], out: Path) -> None:
    """Write stacked bars, with the speed-up over stock mmrazor beside."""
    matplotlib.use('Agg')
    figure, all_axes = plt.subplots(
        len(panels), squeeze=False, figsize=(9, 0.6 + 3.6 * len(panels)),
        layout='constrained')
    for axes, ((pair, device), rows) in zip(all_axes[:, 0], panels.items()):
        names = [name for name in VARIANTS if name in rows]
        left = [0.0] * len(names)
        for part in PARTS:
            widths = [
                float(rows[name][f'{part}_ms'.replace(' ', '_')])
                for name in names
            ]
            axes.barh(names, widths, left=left, label=part)
            left = [a + b for a, b in zip(left, widths)]
        for name, end in zip(names, left):
            axes.text(end, name, f' {float(rows[name]["speedup"]):.2f}x',
                      va='center')
        row = rows[names[0]]
        axes.set_title(
            f'{pair}: {row["pixels"]} px, batch {row["batch"]}, {device}, '
            f'torch {row["torch"]}', fontsize='medium')
        axes.set_xlabel('ms per step; ratio to stock mmrazor')
        axes.set_xlim(0, 1.1 * max(left))
        axes.invert_yaxis()
    all_axes[0, 0].legend(fontsize='small')
    figure.savefig(out, dpi=110)


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--results', type=Path, default=RESULTS / 'step.csv', help='CSV file')
    parser.add_argument(
        '--out', type=Path, default=RESULTS / 'step.png', help='PNG file')
    args = parser.parse_args()
    try:
        panels = latest(args.results)
    except (OSError, ValueError) as error:
        parser.exit(1, f'plot.py: {error}\n')
    draw(panels, args.out)
    print(args.out)


if __name__ == '__main__':
    main()
