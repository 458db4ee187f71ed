"""Let the process keep memory that tensors on the CPU have freed.

glibc hands large freed blocks back to the system and asks for them again at
the next operation, which then waits while the system clears every page. Large
feature maps meet this at each layer of each step.
"""
from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# Where glibc's own thresholds end up after large blocks were freed: the
# highest that it adapts to, and twice as much. It does not adapt them any
# more once they were set.
_HIGHEST_MMAP_THRESHOLD = 4 * 1024**2 * ctypes.sizeof(ctypes.c_long)
_MMAPS = 65536


def keep_freed_memory(undo: ExitStack | None = None) -> str | None:
    """Keep freed memory for the process's next tensors.

    The process then stays as large as it was at its peak.

    Args:
        undo: Gets what hands memory back again.

    Returns:
        Why this is left alone, or None if it is not.

    Source: ``mallopt(3)``: no ``mmap`` for large blocks, no trimming.
    """
    why = _why_not(os.environ)
    if why is not None:
        return why
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    if undo is not None:
        undo.callback(give_back_freed_memory)
    return None


def give_back_freed_memory() -> None:
    """Take :func:`keep_freed_memory` back, and what is free with it."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, _MMAPS)
    libc.mallopt(_M_MMAP_THRESHOLD, _HIGHEST_MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, 2 * _HIGHEST_MMAP_THRESHOLD)
    libc.malloc_trim(0)


def _why_not(environment: Mapping[str, str]) -> str | None:
    if platform.libc_ver()[0] != 'glibc':
        return 'the C library is not glibc'
    for name, value in environment.items():
        if name.startswith('MALLOC_') and name.endswith('_'):
            return f'{name} is set'
        if name in ('GLIBC_TUNABLES', 'LD_PRELOAD') and 'malloc' in value:
            return f'{name} is {value}'
    return None
