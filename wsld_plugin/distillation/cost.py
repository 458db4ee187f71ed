"""What a network costs: its size, and the arithmetic and time of a picture."""
from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

_SECONDS = 2.0


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

    ``inputs`` is one picture ``(1, 3, H, W)`` on the network's device.
    """
    threads = torch.get_num_threads()
    tensors = [*network.parameters(), *network.buffers()]
    with torch.no_grad():
        multiply_adds = _multiply_adds(network, inputs)
        times = Timer(
            'network(inputs)',
            globals=dict(network=network, inputs=inputs),
            num_threads=threads).blocked_autorange(min_run_time=_SECONDS)
    return Cost(
        sum(one.numel() for one in network.parameters()), multiply_adds,
        1e3 * times.median, 1e3 * times.iqr,
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
