"""Text on its way to a terminal: what may reach it, and streams that outlive their readers.

Data, checkpoints, recipes and file names hold whatever their makers like: none of it may steer a
terminal, hide a line, or look like a line of ours.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast

#: Control characters, halves of surrogate pairs, and the marks that embed, override or isolate a
#: direction of writing (Unicode standard annex 9), but neither tabs nor line ends.
_UNSAFE = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_STEERS = re.compile(f"[{_UNSAFE}]")
#: Names are told apart by what is seen. In running text the three marks of a direction stay: they
#: move no more than the punctuation beside them, and Arabic and Hebrew are written with them.
_STEERS_OR_BREAKS = re.compile(f"[\t\n\u061c\u200e\u200f\u2028\u2029{_UNSAFE}]")
#: Errors of a stream whose reader is gone: a closed pipe, terminal or descriptor.
_UNREAD = (errno.EPIPE, errno.EIO, errno.EBADF)
#: Characters of a name that are shown where a list of names is.
NAME_CHARS = 60


def for_terminal(text: object) -> str:
    """Replace what would steer a terminal by U+FFFD; line ends and tabs stay."""
    return _STEERS.sub("\ufffd", str(text).replace("\r\n", "\n"))


def in_line(text: object) -> str:
    r"""Write a label, a file name or a text on one line: a line end as `\n`, escape as `\x1b`."""
    return _STEERS_OR_BREAKS.sub(lambda m: m[0].encode("unicode_escape").decode(), str(text))


def names_in_line(names: Iterable[object], most: int = 20) -> str:
    """List names that data have, such as keys: quoted, shortened, of many the first and how many.

    Args:
        names: whatever a person gave.
        most: how many are listed.
    """
    texts = [str(name) for name in names]
    cut = [text if len(text) <= NAME_CHARS else f"{text[: NAME_CHARS - 1]}…" for text in texts]
    listed = ", ".join(map(repr, cut[:most]))
    return listed if len(texts) <= most else f"{listed}, … ({len(texts):,})"


def hanging(text: object) -> str:
    """Indent the further lines of a message: no name in it can begin a line of its own."""
    return re.sub(r"\n(?! )", "\n  ", for_terminal(text))


def json_text(value: object, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Write a value as JSON that a terminal may show: the same value, some characters escaped."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    return _STEERS.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


class OutputLost(Exception):  # noqa: N818 - often no error: whoever read it has seen enough
    """Standard output takes nothing more.

    Attributes:
        unread: whether its reader is gone, rather than, say, its disk full.
        closed_pipe: whether a reader left that was there before.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: cannot be written ({error.strerror or error})")
        self.unread = error.errno in _UNREAD
        self.closed_pipe = error.errno == errno.EPIPE


class LastingStream:
    """A standard stream that may lose its reader or its disk at any time.

    Args:
        stream: the stream; everything but writing is its own.
        on_loss: called with the error when something cannot be written. By default it is ignored:
            no note is worth a training.
    """

    def __init__(self, stream: TextIO, on_loss: Callable[[OSError], None] | None = None) -> None:
        self._stream, self._on_loss = stream, on_loss

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        with self._losing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or lose it."""
        with self._losing():
            self._stream.flush()

    def finish(self) -> None:
        """Write what is buffered for the last time: Python flushes again when it ends."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # A full disk may have room for later notes; who is gone never comes back.
            if self._on_loss is not None or error.errno in _UNREAD:
                self._give_up()
            if self._on_loss is not None:
                self._on_loss(error)

    def _give_up(self) -> None:
        """Send what is buffered, and all that follows, nowhere; from C libraries, too."""
        with suppress(OSError):  # a stream without a descriptor
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _lost(error: OSError) -> None:
    raise OutputLost(error) from None


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Context in which the standard streams hold any text and fail in an orderly way.

    Standard error goes silent where it cannot be written. Characters that the encoding of a stream
    lacks are written as escapes.

    Raises:
        OutputLost: standard output cannot be written, when it is written or at the end.
    """
    _reopen_closed()
    for stream in (sys.stdout, sys.stderr):
        # It flushes, and asks the file for its position, which either may fail.
        with suppress(OSError):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
    out, notes = LastingStream(sys.stdout, _lost), LastingStream(sys.stderr)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, notes)):
        try:
            yield
        finally:
            # A command ends by SystemExit: what it printed last is still to be written.
            try:
                out.flush()
            finally:
                out.finish()
                notes.finish()


def _reopen_closed() -> None:
    """Put something in the place of standard streams that are closed (`>&-`).

    Nothing can be read there, and writing fails as it does to a closed descriptor. Otherwise the
    next file that is opened would get the number of standard output, and what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
