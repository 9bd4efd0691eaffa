"""Keeping freed memory at hand while training on a CPU.

A training step asks for the same large blocks again and again. glibc serves blocks over 128 KiB
with fresh pages from the kernel and gives them back when freed, so each step pays for faulting in
and clearing hundreds of megabytes that it had a moment ago.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# From glibc's malloc.h; the defaults from mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


@contextmanager
def reusing_memory(enabled: bool = True) -> Iterator[None]:
    """While entered, freed memory stays with the process; afterwards it goes back to the system.

    Does nothing where the C library is not glibc.
    """
    libc = _glibc() if enabled else None
    if libc is None:
        yield
        return
    libc.malloc_trim(0)  # what reading and tokenizing left behind, in the arenas of their threads
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
