"""Keeping freed memory at hand on a CPU, but not too much.

A training step, or a batch that a model answers, asks for the same large blocks again and again.
glibc serves blocks over 128 KiB with fresh pages from the kernel and returns them when freed, so
each step pays for faulting in and clearing hundreds of megabytes that it had a moment ago.

For answers a process keeps some tens of megabytes. While it trains it keeps all, and blocks become
fragmented: batches differ in shape, small allocations stay between large ones that are freed, and
the heap grows to several times what is in use. So free memory is returned to the system whenever
the process holds much more than it needs.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# From glibc's malloc.h; the defaults from mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_STATM = Path("/proc/self/statm")

#: The least time between two trims, as a multiple of how long a trim takes. Faulting the pages in
#: again takes about as long, so both cost about two hundredths of the time.
_APART = 100


#: The bytes of free memory that a process keeps for its next answers, and of a block from there.
_KEPT, _LARGEST = 64 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Let the process keep free memory, though not much, from now on; for a model that answers."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


@contextmanager
def reusing_memory(enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Context that lets the process keep freed memory; afterwards it returns to the system.

    Does nothing where the C library is not glibc. Yields a function to call between updates (and
    batches of an evaluation), which returns memory when the process holds too much.
    """
    libc = _glibc() if enabled else None
    if libc is None:
        yield lambda: None
        return
    libc.malloc_trim(0)  # what reading and tokenizing left in their threads' arenas
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_MMAP_MAX, 0)
    try:
        yield Tidy(lambda: libc.malloc_trim(0), own_memory)
    finally:
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


@dataclass
class Tidy:
    """Returns free memory to the system when the process holds half as much again as it needs.

    It needs what it holds after the first update, which started with nothing to spare. Where later
    updates need more, memory is returned only as often as costs little time.
    """

    trim: Callable[[], object]  # returns all free memory to the system
    held: Callable[[], int]  # counts the bytes that the process holds
    clock: Callable[[], float] = time.perf_counter  # the time in seconds
    limit: float = 0.0  # the bytes above which memory is returned
    _not_before: float = 0.0

    def __call__(self) -> None:
        """Check the memory after an update."""
        held, now = self.held(), self.clock()
        if not self.limit:
            self.limit = 1.5 * held
        elif held > self.limit and now >= self._not_before:
            self.trim()
            after = self.clock()
            self._not_before = after + _APART * (after - now)


def own_memory() -> int:
    """Bytes of memory that only this process uses, without the files it reads."""
    _, resident, shared, *_ = _STATM.read_bytes().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or not _STATM.is_file():
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
