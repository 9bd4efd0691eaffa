"""The bytes of data files as a stream: from the disk, a pipe or standard input; gzip is unpacked.

Gzip is told by the content and not by the name, and unpacked within bounds: a small file must not
fill the memory or run for hours.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pretune.errors import DataError
from pretune.storage.object_store import is_url, local_copy, look_up, opened
from pretune.text.file_kinds import is_gzip, refuse_binary

STDIN = "-"
#: Bytes read at a time.
READ_BYTES = 1 << 20
#: A gzip file that unpacks to more bytes than this, and to more than `MAX_RATIO` times its own, is
#: refused. Text shrinks to a third or a tenth; deflate can at most make 1,032 bytes of one.
FREE_BYTES = 1 << 26
MAX_RATIO = 200

#: Names of files that a process has open.
_OPEN_FILE = re.compile(r"/dev/(?:stdin|fd/\d+)|/proc/(?:self|\d+)/fd/\d+")

#: Called with the number of bytes read since the last call.
OnBytes = Callable[[int], None]

#: Pipes that were read, by device and inode: when each was written last, and a copy of its bytes.
_SPOOLED: dict[tuple[int, int], tuple[int, str]] = {}


def display_name(file: str) -> str:
    """The name of a file in messages."""
    return "standard input" if file == STDIN else file


def is_pipe(path: str | Path) -> bool:
    """Whether a path is a pipe: a FIFO, `/dev/stdin` behind `|`, or the shell's `<(...)`."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a name with a NUL in it
        return False


def is_passing(path: str | Path) -> bool:
    """Whether no later process finds there what this one does: in a pipe, or its own open file."""
    return is_pipe(path) or _OPEN_FILE.fullmatch(str(path)) is not None


def is_file(path: str | Path) -> bool:
    """Whether there is something to read: a file, a pipe or an object in storage.

    No name raises an error but one in a storage that cannot be reached (DataError).
    """
    if is_url(path):
        return look_up(path) is not None
    return os.path.isfile(path) or is_pipe(path)


def spooled(path: str | Path) -> str:
    """A file with the bytes of a pipe, which can be read only once; any other path as it is.

    Later calls give the same file, unless the pipe was written to in between. It is deleted when
    the process ends. Of an object in storage it is the copy in the cache.
    """
    if is_url(path):
        return str(local_copy(path))
    if not is_pipe(path):
        return str(path)
    status = os.stat(path)
    pipe = (status.st_dev, status.st_ino)
    if pipe not in _SPOOLED or _SPOOLED[pipe][0] != status.st_mtime_ns:
        with (
            open(path, "rb") as source,
            tempfile.NamedTemporaryFile(prefix="pretune-pipe-", delete=False) as copy,
        ):
            atexit.register(_remove, copy.name)
            shutil.copyfileobj(source, copy, READ_BYTES)
            _SPOOLED[pipe] = (os.fstat(source.fileno()).st_mtime_ns, copy.name)
    return _SPOOLED[pipe][1]


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def file_bytes(
    file: str,
    on_bytes: OnBytes | None = None,
    *,
    wide: bool = False,
    span: tuple[int, int] | None = None,
) -> Iterator[bytes]:
    """The bytes of the text in a file, unpacked, at most `READ_BYTES` at a time.

    Args:
        file: its path, or `STDIN`.
        on_bytes: called with the number of bytes read from the disk since the last call.
        wide: see `text_bytes`.
        span: the first byte and one past the last, of a file that is not packed; None for all.

    Raises:
        DataError: the file cannot be read, or is no text by its first bytes.
    """
    try:
        with opened_bytes(file) as handle:
            start, stop = span or (0, None)
            if start:  # what a file is, is told by its head
                handle.seek(start)
                yield from _read(handle, on_bytes, None if stop is None else stop - start)
            else:
                yield from text_bytes(_read(handle, on_bytes, stop), file, wide=wide)
    except OSError as error:
        raise DataError(
            f"{display_name(file)}: cannot be read ({error.strerror or error})",
            "Check the file, its owner and its mode.",
        ) from None


@contextmanager
def opened_bytes(file: str) -> Iterator[BinaryIO]:
    """Open a file, a pipe's copy, an object in storage or standard input, packed as it is."""
    if file == STDIN:
        yield sys.stdin.buffer
        return
    with opened(file) if is_url(file) else open(spooled(file), "rb") as handle:
        yield handle


def _read(handle: BinaryIO, on_bytes: OnBytes | None, count: int | None = None) -> Iterator[bytes]:
    """Read `count` bytes, or all that there are."""
    left = count
    while chunk := handle.read(READ_BYTES if left is None else min(left, READ_BYTES)):
        if left is not None:
            left -= len(chunk)
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def text_bytes(raw: Iterator[bytes], file: str, *, wide: bool = False) -> Iterator[bytes]:
    """The bytes of a stream, unpacked if they are gzip; a DataError for what is no text.

    Args:
        raw: the bytes as they were read.
        file: its path, for messages; a name that ends in `.gz` promises gzip.
        wide: whether the text is in UTF-16 or UTF-32, where zero bytes are usual.
    """
    head = next(raw, b"")
    chunks = itertools.chain([head], raw)
    if is_gzip(head):
        chunks = itertools.chain(_gunzipped(chunks, file))
        head = next(chunks, b"")
        chunks = itertools.chain([head], chunks)
    elif head and file.lower().endswith(".gz"):
        raise _damaged(file, "it does not begin as one")
    refuse_binary(display_name(file), head, wide=wide)
    yield from chunks


def first_bytes(file: str, count: int) -> bytes:
    """The first bytes of a file, unpacked, or all where there are fewer."""
    head = b""
    for chunk in file_bytes(file, wide=True):
        head += chunk
        if len(head) >= count:
            break
    return head[:count]


def _gunzipped(packed: Iterator[bytes], file: str) -> Iterator[bytes]:
    """Unpack all members of a gzip file, one after the other (RFC 1952), in bounded pieces."""
    unpacker = zlib.decompressobj(wbits=31)
    took = gave = 0
    for chunk in packed:
        took += len(chunk)
        while chunk:
            # After the end of a member there is another, or zeros that fill up a block.
            if unpacker.eof:
                chunk = chunk.lstrip(b"\0")
                if not chunk:
                    break
                unpacker = zlib.decompressobj(wbits=31)
            try:
                data = unpacker.decompress(chunk, READ_BYTES)
            except zlib.error as error:
                raise _damaged(file, str(error)) from None
            gave += len(data)
            if gave > FREE_BYTES and gave > MAX_RATIO * took:
                raise DataError(
                    f"{display_name(file)}: unpacks to over {MAX_RATIO} times its size",
                    f"That is no usual text. If it is right, decompress it first: gunzip {file}",
                )
            if data:
                yield data
            chunk = unpacker.unconsumed_tail or unpacker.unused_data
    if not unpacker.eof:
        raise _damaged(file, "it ends too early")


def _damaged(file: str, reason: str) -> DataError:
    return DataError(
        f"{display_name(file)}: not a gzip file, or a damaged gzip file ({reason})",
        "Copy or write the file again.",
    )
