"""Keeping freed memory at hand while training on a CPU, and not too much of it.

A training step asks for the same large blocks again and again. glibc serves blocks over 128 KiB
with fresh pages from the kernel and gives them back when freed, so each step pays for faulting in
and clearing hundreds of megabytes that it had a moment ago.

Kept blocks are cut up, though: batches differ in shape, small things that stay lie between large
ones that went, and the heap grows for what no longer fits anywhere, to several times what is in
use. So what lies free goes back to the system whenever the process has much more than it needed.
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
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_STATM = Path("/proc/self/statm")

#: The least time between two times of giving back, in times of how long it took. Faulting the pages
#: in again takes about as long: two hundredths of the time in all.
_APART = 100


@contextmanager
def reusing_memory(enabled: bool = True) -> Iterator[Callable[[], None]]:
    """While entered, freed memory stays with the process; afterwards it goes back to the system.

    Does nothing where the C library is not glibc.

    Yields:
        what is to be called between updates (and batches of an evaluation), and gives back what
        has become too much.
    """
    libc = _glibc() if enabled else None
    if libc is None:
        yield lambda: None
        return
    libc.malloc_trim(0)  # what reading and tokenizing left behind, in the arenas of their threads
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
    """Gives free memory back when the process has half as much again as it needs.

    What it needs is what it has after the first update, which began with nothing to spare. Where
    later ones need more, memory is given back as often as costs little time.

    Attributes:
        trim: gives back all that is free.
        held: how many bytes the process has.
        clock: the time, in seconds.
        limit: the bytes above which memory is given back.
    """

    trim: Callable[[], object]
    held: Callable[[], int]
    clock: Callable[[], float] = time.perf_counter
    limit: float = 0.0
    _not_before: float = 0.0

    def __call__(self) -> None:
        """After an update."""
        held, now = self.held(), self.clock()
        if not self.limit:
            self.limit = 1.5 * held
        elif held > self.limit and now >= self._not_before:
            self.trim()
            after = self.clock()
            self._not_before = after + _APART * (after - now)


def own_memory() -> int:
    """Bytes in memory that are this process's alone, files that it reads not among them."""
    _, resident, shared, *_ = _STATM.read_bytes().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or not _STATM.is_file():
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
