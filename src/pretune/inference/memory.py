"""Keeping freed memory at hand on a CPU, but not too much, and in large pages while training.

A training step, or a batch that a model answers, asks for the same large blocks again and again.
glibc serves blocks over 128 KiB with fresh pages from the kernel and returns them when freed, so
each step pays for faulting in and clearing hundreds of megabytes that it had a moment ago.

For answers a process keeps some tens of megabytes. While it trains it keeps all, and blocks become
fragmented: batches differ in shape, small allocations stay between large ones that are freed, and
the heap grows to several times what is in use. So free memory is returned to the system whenever
the process holds much more than it needs.

A step also reads and writes more pages of 4 KiB than the processor keeps addresses of (in its TLB).
Where Linux has pages of 2 MiB for who asks, the heap of a process that trains asks for them.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
#: The bytes of free memory that a process keeps for its next answers, and of a block from there:
#: what glibc's own thresholds grow to as large blocks are freed, until one of them is set.
_KEPT, _LARGEST = 64 << 20, 32 << 20
_ANSWERING = {_TRIM_THRESHOLD: _KEPT, _MMAP_THRESHOLD: _LARGEST}
_TRAINING = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20, _MMAP_MAX: 0}
#: The other two have the defaults of mallopt(3) again.
_AFTERWARDS = {**_ANSWERING, _TOP_PAD: 128 << 10, _MMAP_MAX: 65536}
_STATM = Path("/proc/self/statm")

#: From Linux's mman.h: the advice to use large pages.
_HUGE_PAGES = 14
#: The bytes that the heap grows by ahead of its use; only what is used takes memory.
_AHEAD = 1 << 30

#: The least time between two trims, as a multiple of how long a trim takes. Faulting the pages in
#: again takes about as long, so both cost about two hundredths of the time.
_APART = 100


def keep_freed_memory() -> None:
    """Let the process keep free memory, though not much, from now on; for a model that answers."""
    libc = _glibc()
    if libc is not None:
        _set(libc, _ANSWERING)


def return_memory() -> None:
    """Return the memory that was freed to the system, such as that of a model no longer used."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def reusing_memory(enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Context that lets the process keep freed memory; afterwards most returns to the system.

    Does nothing where the C library is not glibc. Yields a function to call between updates (and
    batches of an evaluation), which returns memory when the process holds too much.
    """
    libc = _glibc() if enabled else None
    if libc is None:
        yield lambda: None
        return
    libc.malloc_trim(0)  # what reading and tokenizing left in their threads' arenas
    _set(libc, _TRAINING)
    pages = HugePages(libc)
    pages.reserve()

    def trim() -> None:
        libc.malloc_trim(0)
        pages.reserve()

    try:
        yield Tidy(trim, own_memory, grown=pages.ask)
    finally:
        _set(libc, _AFTERWARDS)
        libc.malloc_trim(0)


def _set(libc: ctypes.CDLL, options: Mapping[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


class HugePages:
    """Asks Linux for large pages wherever glibc's heap has grown.

    Args:
        libc: the C library.
    """

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._libc = libc
        libc.sbrk.restype = libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = libc.sbrk.argtypes = libc.malloc.argtypes = (ctypes.c_size_t,)
        libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
        self._asked_to = self._end()  # the address up to which it has asked

    def reserve(self) -> None:
        """Let the heap grow ahead of its use: pages that are in use stay as small as they are."""
        self._asked_to = self._end()
        self._libc.free(self._libc.malloc(_AHEAD) or 0)
        self.ask()

    def ask(self) -> None:
        """Ask for the part that is new since the last time."""
        end = self._end()
        if end > self._asked_to:
            self._libc.madvise(self._asked_to, end - self._asked_to, _HUGE_PAGES)
        self._asked_to = end

    def _end(self) -> int:
        """The end of the heap, at the border of a page."""
        page = os.sysconf("SC_PAGE_SIZE")
        return -(-int(self._libc.sbrk(0)) // page) * page


@dataclass
class Tidy:
    """Returns free memory to the system when the process holds half as much again as it needs.

    It needs what it holds after the first update, which started with nothing to spare. Where later
    updates need more, memory is returned only as often as costs little time.
    """

    trim: Callable[[], object]  # returns all free memory to the system
    held: Callable[[], int]  # counts the bytes that the process holds
    clock: Callable[[], float] = time.perf_counter  # the time in seconds
    grown: Callable[[], object] = lambda: None  # hears that the heap may have grown
    limit: float = 0.0  # the bytes above which memory is returned
    _not_before: float = 0.0

    def __call__(self) -> None:
        """Check the memory after an update."""
        self.grown()
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
