"""Keys that clients have to show, from a file that may change at any time."""

from __future__ import annotations

import hmac
import os
import stat
import time
from codecs import BOM_UTF8
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from pretune.errors import PretuneError, RunError

#: Seconds between two looks at the file.
_LOOK_EVERY = 1.0
#: Bytes of a file with keys: more is something else.
_MAX_BYTES = 1 << 20


class ApiKeys:
    """The keys of a file: one a line; blank lines, and lines that begin with #, are no keys.

    Neither a byte-order mark at the start nor the carriage returns of Windows are part of a key.

    Only their hashes are kept, and all are compared, each in the same time whatever is shown.

    Args:
        path: the file.
        say: told when the file has changed and cannot be used: the keys before stay.

    Raises:
        RunError: the file cannot be read, has no key, or has one that no header can carry.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._state = self._seen()
        self._hashes = _read(path)
        self._looked = time.monotonic()

    def admits(self, authorization: str) -> bool:
        """Whether the value of an `Authorization` header has one of the keys: `Bearer KEY`."""
        self._look()
        scheme, _, key = authorization.partition(" ")
        shown = sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        equal = [hmac.compare_digest(known, shown) for known in self._hashes]
        return any(equal) and scheme.lower() == "bearer"

    def _look(self) -> None:
        """Read the file again if it has changed."""
        if time.monotonic() < self._looked + _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        state = self._seen()
        if state == self._state:
            return
        self._state = state
        try:
            self._hashes = _read(self._path)
        except PretuneError as error:
            self._say(f"{error.message}; the keys from before stay")
        else:
            self._say(f"{self._path}: read again, {len(self._hashes)} keys")

    def _seen(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _content(path: Path) -> bytes:
    """Read a file of keys; a RunError if it is none, such as a pipe that nobody may ever end."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        hint = "The keys are read again when they change: write them into a file of their own."
        raise RunError(f"{path}: this is {kind}, and no file with keys", hint)
    with open(number, "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise RunError(
            f"{path}: over {_MAX_BYTES:,} bytes, which is no file with keys",
            "Write one key a line, e.g. from: openssl rand -hex 32",
        )
    return content


def _read(path: Path) -> list[bytes]:
    hint = "Write one key a line, e.g. from: openssl rand -hex 32"
    try:
        lines = _content(path).removeprefix(BOM_UTF8).decode("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise RunError(f"{path}: the keys cannot be read ({why})", hint) from None
    keys = [(n, line.strip()) for n, line in enumerate(lines, start=1)]
    keys = [(n, key) for n, key in keys if key and not key.startswith("#")]
    for number, key in keys:
        if not key.isprintable() or " " in key:
            raise RunError(f"{path}, line {number}: a key has no blanks in it", hint)
    if not keys:
        raise RunError(f"{path}: no key in it", hint)
    return [sha256(key.encode()).digest() for _, key in keys]
