"""What the benchmarks share: interleaved timing, memory, result files."""
from __future__ import annotations

import argparse
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from wsld_plugin.analysis import print_table

Step = Callable[[], Any]


class Times(NamedTuple):
    """Seconds of one step: median and interquartile range of its runs."""

    median: float
    spread: float


def clock(device: torch.device) -> float:
    """Seconds now, after all work queued on the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def interleave(steps: Mapping[str, Step], repeats: int, device: torch.device,
               warm_up: int) -> dict[str, Times]:
    """Run all steps in turn, round after round.

    What else the machine does then hits all of them alike.
    """
    runs: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(warm_up + repeats):
        for name, step in steps.items():
            start = clock(device)
            step()
            seconds = clock(device) - start
            if i >= warm_up:
                runs[name].append(seconds)
    return {name: summary(seconds) for name, seconds in runs.items()}


def summary(seconds: list[float]) -> Times:
    """Median and interquartile range of measurements."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Times(float(median), float(high - low))


def peak_memory(step: Step, device: torch.device) -> int:
    """Bytes that a step holds at most above what was there before."""
    step()
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def conditions(device: torch.device) -> dict[str, Any]:
    """The columns that say what a figure was measured on."""
    commit = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--exclude=*'],
        cwd=Path(__file__).parent, capture_output=True, text=True)
    return dict(
        device=device_name(device), threads=torch.get_num_threads(),
        torch=torch.__version__, python=platform.python_version(),
        commit=commit.stdout.strip() or 'unknown', date=str(date.today()))


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its widest bfloat16 unit."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')
    text = cpuinfo.read_text() if cpuinfo.exists() else ''
    name = re.search(r'^model name\s*: (.*)', text, re.MULTILINE)
    unit = re.search('amx_bf16|avx512_bf16|avx512f|avx2', text)
    return ' '.join(found[found.re.groups] if found else platform.machine()
                    for found in (name, unit))


def parser(what: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with what both benchmarks take."""
    parser = argparse.ArgumentParser(description=what)
    add = parser.add_argument
    add('--repeats', type=int, default=repeats, metavar='N',
        help=f'of each (default: {repeats})')
    add('--threads', type=int, default=1)
    add('--device', type=torch.device,
        default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--csv', type=Path, help='file to add the rows to')
    return parser


def report(rows: list[dict[str, Any]], shown: list[str],
           path: Path | None) -> None:
    """Print some columns; add all to a CSV file."""
    table = pd.DataFrame(rows)
    one = rows[0]
    print_table(table[shown], f'{one["device"]}, {one["threads"]} thread(s), '
                f'torch {one["torch"]}')
    if path is not None:
        table.to_csv(path, mode='a', header=not path.exists(), index=False)
