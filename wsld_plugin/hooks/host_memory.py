"""Let the process keep memory that tensors on the CPU have freed.

glibc hands what is free at the end of its heap back to the system as soon as
that is 64 MB, and asks for it again at the next operation, which then waits
while the system clears every page. Feature maps meet this at many a layer of
each step.
"""
from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Larger blocks come from the system one by one. glibc itself goes up to this
# as blocks are freed, but not any more once a threshold was set.
_MMAP_THRESHOLD = 4 * 1024**2 * ctypes.sizeof(ctypes.c_long)


def keep_freed_memory(undo: ExitStack) -> str | None:
    """Keep freed memory, in blocks of up to 32 MB, for the next tensors.

    Args:
        undo: Gets what hands memory back again, now and from then on.

    Returns:
        Why this is left alone, or None if it is not.

    Source: ``mallopt(3)``, ``M_TRIM_THRESHOLD``.
    """
    why = _why_not(os.environ)
    if why is not None:
        return why
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)

    def give_back() -> None:
        # As glibc sets it beside that threshold.
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_THRESHOLD)
        libc.malloc_trim(0)

    undo.callback(give_back)
    return None


def _why_not(environment: Mapping[str, str]) -> str | None:
    if platform.libc_ver()[0] != 'glibc':
        return 'the C library is not glibc'
    for name, value in environment.items():
        if name.startswith('MALLOC_') and name.endswith('_'):
            return f'{name} is set'
        if name in ('GLIBC_TUNABLES', 'LD_PRELOAD') and 'malloc' in value:
            return f'{name} is {value}'
    return None
