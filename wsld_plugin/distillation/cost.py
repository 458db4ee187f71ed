"""What a network costs: its size, and the arithmetic and time of a picture."""
from __future__ import annotations

import statistics
import time
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn

_WARM_UP = 3
# Timed runs: these bounds, and between them what fits into the seconds.
_FEWEST, _MOST, _SECONDS = 10, 200, 2.0


class Cost(NamedTuple):
    """What :func:`measure_cost` found.

    Attributes:
        parameters: Their number, shared ones counted once.
        multiply_adds: For one picture, of convolutions, linear layers and
            attention; None where torch (before 2.3) cannot count them.
        latency_ms: Median time of one picture, in milliseconds.
        spread: Between the quartiles of that time, in milliseconds.
        size_mb: Of parameters and buffers, in 10^6 bytes.
        device: What it was measured on: ``'CPU, 2 threads'`` or a GPU.
    """

    parameters: int
    multiply_adds: int | None
    latency_ms: float
    spread: float
    size_mb: float
    device: str = ''


def measure_cost(network: nn.Module, inputs: Tensor) -> Cost:
    """Measure a network in evaluation mode, with the threads as they are.

    The network's modes and the global random state stay as they were.

    Args:
        network: Takes pictures as its only input.
        inputs: ``(N, 3, H, W)`` on the network's device; the first is used.

    Raises:
        ValueError: If there is no picture.
    """
    if not len(inputs):
        raise ValueError('inputs must hold at least one picture, got '
                         f'{tuple(inputs.shape)}')
    inputs = inputs[:1]
    tensors = [*network.parameters(), *network.buffers()]
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        with torch.no_grad(), torch.random.fork_rng(
                [inputs.device] if inputs.is_cuda else []):
            multiply_adds = _multiply_adds(network, inputs)
            times = _milliseconds(network, inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    lower, median, upper = statistics.quantiles(times, n=4)
    threads = torch.get_num_threads()
    return Cost(
        sum(one.numel() for one in network.parameters()), multiply_adds,
        median, upper - lower,
        sum(one.numel() * one.element_size() for one in tensors) / 1e6,
        torch.cuda.get_device_name(inputs.device) if inputs.is_cuda else
        f'CPU, {threads} thread{"s" * (threads > 1)}')


def _multiply_adds(network: nn.Module, inputs: Tensor) -> int | None:
    if find_spec('torch.nn.attention') is None:
        return None
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Attention that runs as one operator on the CPU would count as nothing.
    whole = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), \
                FlopCounterMode(display=False) as counter:
            network(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(whole)
    return counter.get_total_flops() // 2


def _milliseconds(network: nn.Module, inputs: Tensor) -> list[float]:
    def finish() -> None:
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)

    for _ in range(_WARM_UP):
        network(inputs)
    finish()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _FEWEST or (
            len(times) < _MOST and time.perf_counter() - began < _SECONDS):
        start = time.perf_counter()
        network(inputs)
        finish()
        times.append(1e3 * (time.perf_counter() - start))
    return times
