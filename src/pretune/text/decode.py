"""From the bytes of files to text, as a stream; every error names file and line."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pretune.errors import DataError, describe_value, did_you_mean

STDIN = "-"
#: Bytes read at a time.
READ_BYTES = 1 << 20
#: Half of a surrogate pair. JSON can spell one alone, and tokenizers refuse it; `decoded` with
#: `marks` writes the second half of one for a byte that is not valid in the encoding.
SURROGATE = re.compile("[\ud800-\udfff]")
#: Name of the error handler that writes those marks.
_MARK_ERRORS = "pretune-mark"
_BYTE_ORDER_MARK = "\ufeff"

#: Called with the number of bytes read since the last call.
OnBytes = Callable[[int], None]


def check_encoding(encoding: str) -> str:
    """Python's own name of a text encoding; an unknown name is a DataError."""
    try:
        "".encode(encoding)  # refuses codecs that are not text encodings, such as hex
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):  # ValueError: a name with a NUL in it; "undefined"
        raise DataError(
            f"no encoding is called '{encoding}'", "Try utf-8, gb18030 or utf-16."
        ) from None


class TextDecoder(codecs.IncrementalDecoder):
    """Decodes incrementally, and drops a byte order mark before the first character.

    Python's own decoders drop it for some encodings only: not for `utf-16-le`, which Windows writes
    with one. `errors` names the handler for bytes that are not valid.
    """

    def __init__(self, encoding: str, errors: str = "strict") -> None:
        super().__init__(errors)
        self._decoder = codecs.getincrementaldecoder(check_encoding(encoding))(errors)
        self._started = False

    def decode(self, input: Any, final: bool = False) -> str:  # noqa: A002
        """Decode the next bytes; those not valid in the encoding are a UnicodeError."""
        text = self._decoder.decode(input, final)
        if self._started:
            return text
        self._started = bool(text)
        return text.removeprefix(_BYTE_ORDER_MARK)


def lines_of(text: str) -> list[str]:
    """Split a text into lines as `wc -l` counts them, without their ends.

    Only line feeds end lines: other line separators of Unicode occur inside sentences. Where there
    is no line feed at all, carriage returns end lines, as on old Macs.
    """
    lines = text.split("\r" if "\r" in text and "\n" not in text else "\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def encoding_hint(start: bytes, option: str = "--encoding ") -> str:
    """The way out for bytes that are not valid in the expected encoding.

    `start` is the beginning of the file. The name of an encoding is appended to `option`.
    """
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"It looks like UTF-16: {option}utf-16"
    if start[:2] == b"\x1f\x8b":
        return "It looks like gzip: let its name end in .gz, or decompress it."
    # Bytes that are valid GB18030 and give ideographs are most likely Chinese.
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(start)
    except UnicodeDecodeError:
        return f"Repair that line, or name the encoding of the file: {option}NAME."
    if any("\u4e00" <= character <= "\u9fff" for character in text):
        return f"It may be Chinese text in GB18030: {option}gb18030"
    return f"Repair that line, or name the encoding of the file: {option}NAME (such as latin-1)."


def _write_mark(error: UnicodeError) -> tuple[str, int]:
    """Write a lone surrogate for an invalid byte: no valid text has one."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(_MARK_ERRORS, _write_mark)


def decoded(
    file: str,
    encoding: str,
    on_bytes: OnBytes | None = None,
    *,
    marks: bool = False,
    option: str = "--encoding ",
) -> Iterator[str]:
    """The text of a file, a chunk of `READ_BYTES` bytes at a time; a byte order mark is dropped.

    Args:
        file: its path; `.gz` is unpacked. `STDIN` is standard input.
        encoding: of the text.
        on_bytes: called with the number of bytes read from the disk since the last call.
        marks: write a lone surrogate, 0xDC00 plus the byte, for each invalid byte instead of
            raising an error, and translate all line ends to line feeds.
        option: see `encoding_hint`.

    Raises:
        DataError: the file cannot be read, or is not in that encoding; names file and line.
    """
    decoder = TextDecoder(encoding, _MARK_ERRORS if marks else "strict")
    newlines = io.IncrementalNewlineDecoder(decoder if marks else None, translate=marks)
    line, start = 1, b""
    for chunk in itertools.chain(_chunks(file, on_bytes), [b""]):
        start = start or chunk
        try:
            text = (newlines if marks else decoder).decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # The part of this chunk before the bad byte tells the line.
            good = error.object[: error.start].decode(error.encoding, "ignore")
            byte = "".join(f" (byte 0x{b:02x})" for b in error.object[error.start :][:1])
            raise DataError(
                f"{display_name(file)}, line {line + good.count(chr(10))}: "
                f"not valid {encoding.upper()}{byte}",
                encoding_hint(start, option),
            ) from None
        except UnicodeError as error:  # some of Python's own encodings do not name the place
            raise DataError(
                f"{display_name(file)}: not valid {encoding.upper()} ({error})",
                encoding_hint(start, option),
            ) from None
        line += text.count("\n")
        yield text


def decode_file(path: Path, encoding: str = "utf-8") -> str:
    """The whole text of a data file, without a byte order mark; errors as in `decoded`."""
    return "".join(decoded(str(path), encoding, option="data.encoding="))


def display_name(file: str) -> str:
    """The name of a file in messages."""
    return "standard input" if file == STDIN else file


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file: a stream of the unpacked bytes, and the file itself."""
    if file == STDIN:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    with open(file, "rb") as raw:
        if file.lower().endswith(".gz"):
            with gzip.open(raw) as unpacked:
                yield unpacked, raw  # type: ignore[misc]
        else:
            yield raw, raw


def _chunks(file: str, on_bytes: OnBytes | None) -> Iterator[bytes]:
    """The unpacked bytes of a file, with errors in our words."""
    try:
        with _opened(file) as (handle, raw):
            position = 0
            while chunk := handle.read(READ_BYTES):
                if on_bytes is not None:
                    # Of a packed file what counts is how far the packed bytes are read.
                    now = raw.tell() if raw.seekable() else position + len(chunk)
                    on_bytes(now - position)
                    position = now
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{file}: not a gzip file, or a damaged gzip file ({error})",
            "Copy or write the file again.",
        ) from None
    except OSError as error:
        raise DataError(
            f"{display_name(file)}: cannot be read ({error.strerror or error})",
            "Check the file, its owner and its mode.",
        ) from None


class Problem(NamedTuple):
    """Why a record has no text that can be used."""

    kind: str  # "JSON", "field" or "encoding"
    message: str  # what is wrong and where
    hint: str  # the way out


def json_field(line: str, place: str, field: str) -> str | Problem:
    """The text in a field of a JSON object, such as a line of JSONL; or why there is none.

    `place` is where the object is, for messages.
    """
    hint = 'Each line is one object: {"text": "..."}.'
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Problem("JSON", f"{place}: not valid JSON ({error})", hint)
    if not isinstance(record, dict):
        message = f"{place}: expected an object, found {type(record).__name__}"
        return Problem("JSON", message, hint)
    if field not in record:
        hint = f"{did_you_mean(field, record)} Say which one it is with --field NAME."
        return Problem("field", f"{place}: no field '{field}'", hint)
    return checked_text(record[field], place, field)


def checked_text(value: object, place: str, field: str) -> str | Problem:
    """Return the value of a field if it is a text that can be encoded; else why it is not."""
    if not isinstance(value, str):
        message = f"{place}, field '{field}': expected a text, found {describe_value(value)}"
        return Problem("field", message, "Give every record a text there, or remove the record.")
    if (half := SURROGATE.search(value)) is not None:
        message = (
            f"{place}, field '{field}': half a character, \\u{ord(half[0]):04x}, "
            f"at character {half.start() + 1}"
        )
        hint = "A text was cut inside a surrogate pair (an emoji, often): repair or remove it."
        return Problem("encoding", message, hint)
    return value
