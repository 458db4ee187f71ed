"""What the benchmarks share: interleaved timing, memory, result files."""
from __future__ import annotations

import csv
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

Step = Callable[[], Any]


class Times(NamedTuple):
    """Seconds of one step: median and interquartile range of its runs."""

    median: float
    spread: float


def clock(device: torch.device) -> float:
    """Seconds now, after all work queued on the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(steps: Mapping[str, Step],
               repeats: int,
               device: torch.device,
               warm_up: int = 1) -> dict[str, Times]:
    """Run all steps in turn, round after round; at least two that count.

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
    """Median and interquartile range of at least two measurements."""
    quartiles = statistics.quantiles(seconds, n=4)
    return Times(statistics.median(seconds), quartiles[2] - quartiles[0])


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
        return torch.cuda.get_device_name()
    cpuinfo = Path('/proc/cpuinfo')
    text = cpuinfo.read_text() if cpuinfo.exists() else ''
    name = re.search(r'^model name\s*: (.*)', text, re.MULTILINE)
    unit = re.search('amx_bf16|avx512_bf16|avx512f|avx2', text)
    return ' '.join(found[found.re.groups] if found else platform.machine()
                    for found in (name, unit))


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV file, which gets a header if it is new."""
    new = not path.exists()
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerows(rows)
