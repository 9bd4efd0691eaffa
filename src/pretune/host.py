"""What differs between Linux, macOS and Windows, each with a way for where a module is missing."""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import IO, Any


def _module(name: str) -> Any:
    """A module that not every system has; None where it is missing."""
    try:
        return import_module(name)
    except ImportError:
        return None


fcntl, resource, msvcrt = map(_module, ("fcntl", "resource", "msvcrt"))
#: The signal of a terminal that closes; None where there is none.
HANG_UP: int | None = getattr(signal, "SIGHUP", None)
#: The byte that is locked on Windows, where nobody else may read what is locked: beyond any file.
_LOCKED_BYTE = 2**31 - 2
_STATUS = Path("/proc/self/status")


def take_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or this process dies; False if another has the lock.

    On a system or a file system without locks nobody is kept out. A lock's file must not be
    removed: two processes could then lock different files of one name.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            place = file.tell()
            file.seek(_LOCKED_BYTE)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            finally:
                file.seek(place)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def sync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if os.name == "nt":
        if path.is_dir():  # Windows opens no folders, and writes their names itself
            return
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0)  # it flushes only what may be written
    else:
        flags = os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(process: int) -> bool:
    """Whether there is a process of this number."""
    if os.name == "nt":  # a signal of 0 would end it there
        return _is_running_on_windows(process)
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _is_running_on_windows(process: int) -> bool:
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(0x1000, False, process)  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return bool(kernel.GetLastError() == 5)  # ERROR_ACCESS_DENIED: it is there
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == 259  # STILL_ACTIVE


def peak_memory() -> int:
    """The most bytes of memory that this process has held so far; 0 where nothing tells."""
    if _STATUS.is_file():  # getrusage counts what the parent held when it forked
        (line,) = (row for row in _STATUS.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) * 2**10
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 2**10)


def usable_cores() -> int:
    """The number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
