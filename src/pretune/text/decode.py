"""Bytes of files to text, as a stream; every error names file and line."""

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
from typing import Any, BinaryIO, NamedTuple

from pretune.errors import DataError, describe_value, did_you_mean

STDIN = "-"
#: Bytes read at a time.
READ_BYTES = 1 << 20
#: JSON can spell one half of a pair that makes up a character; tokenizers refuse it. And `decoded`
#: can put the second half of one where bytes have no meaning.
SURROGATE = re.compile("[\ud800-\udfff]")
_MARK = "pretune-mark"
#: The byte order mark, which some programs put before the first character of a file.
_ORDER = "\ufeff"

Report = Callable[[int], None]


def check_encoding(encoding: str) -> str:
    """The name Python has for an encoding of texts.

    Raises:
        DataError: there is no such encoding of texts.
    """
    try:
        "".encode(encoding)  # refuses the codecs that are no encoding of texts, such as hex
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):  # a name with a NUL in it; "undefined", which has no use
        raise DataError(
            f"no encoding is called '{encoding}'", "Try utf-8, gb18030 or utf-16."
        ) from None


class TextDecoder(codecs.IncrementalDecoder):
    """Decodes piece by piece, and passes over a byte order mark before the first character.

    Python's own do so only for some encodings: not for `utf-16-le`, which Windows writes with one.

    Args:
        encoding: of the text.
        errors: what is to become of bytes that are not in it.

    Raises:
        DataError: there is no such encoding of texts.
    """

    def __init__(self, encoding: str, errors: str = "strict") -> None:
        super().__init__(errors)
        self._decoder = codecs.getincrementaldecoder(check_encoding(encoding))(errors)
        self._begun = False

    def decode(self, input: Any, final: bool = False) -> str:  # noqa: A002
        """The text of some more bytes.

        Raises:
            UnicodeError: they are not in the encoding.
        """
        text = self._decoder.decode(input, final)
        if self._begun:
            return text
        self._begun = bool(text)
        return text.removeprefix(_ORDER)


def lines_of(text: str) -> list[str]:
    """Lines as `wc -l` counts them: other characters that end lines may stand inside a sentence.

    Where there is no line feed at all, carriage returns end them, as on old Macs.
    """
    lines = text.split("\r" if "\r" in text and "\n" not in text else "\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def encoding_hint(start: bytes, option: str = "--encoding ") -> str:
    """What to do about bytes that are not in the encoding they should be in.

    Args:
        start: how the file begins, or all of it.
        option: what the encoding is given with.
    """
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"It looks like UTF-16: {option}utf-16"
    if start[:2] == b"\x1f\x8b":
        return "It looks like gzip: let its name end in .gz, or decompress it."
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(start)
    except UnicodeDecodeError:
        return f"Repair that line, or say what the file is in with {option}NAME."
    if any("\u4e00" <= character <= "\u9fff" for character in text):
        return f"It may be Chinese text in GB18030: {option}gb18030"
    return f"Repair that line, or say what the file is in: {option}NAME (such as latin-1)."


def _keep_place(error: UnicodeError) -> tuple[str, int]:
    """Put a lone surrogate where a byte has no meaning: it can stand for nothing else there."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error(_MARK, _keep_place)


def decoded(
    file: str, encoding: str, on_bytes: Report | None = None, *, marks: bool = False
) -> Iterator[str]:
    """The text of a file, a chunk of `CHUNK` bytes at a time; a byte order mark is dropped.

    Args:
        file: its path; `.gz` is unpacked. `STDIN` is standard input.
        encoding: of the text.
        on_bytes: told the number of bytes read since the last time, as they lie on the disk.
        marks: bytes that are not in that encoding become lone surrogates, 0xDC00 and the byte,
            instead of an error; and all line ends become line feeds.

    Raises:
        DataError: not to be read, or not in that encoding; names file and line.
    """
    decoder = TextDecoder(encoding, _MARK if marks else "strict")
    ends = io.IncrementalNewlineDecoder(decoder if marks else None, translate=marks)
    line, start = 1, b""
    for chunk in itertools.chain(_chunks(file, on_bytes), [b""]):
        start = start or chunk[: 1 << 16]
        try:
            text = (ends if marks else decoder).decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            good = error.object[: error.start].decode(error.encoding, "ignore")
            raise DataError(
                f"{display_name(file)}, line {line + good.count(chr(10))}: "
                f"not valid {encoding.upper()} "
                f"(byte 0x{error.object[error.start]:02x})",
                encoding_hint(start),
            ) from None
        except UnicodeError as error:  # of some of Python's own encodings, which know no place
            raise DataError(
                f"{display_name(file)}: not valid {encoding.upper()} ({error})",
                encoding_hint(start),
            ) from None
        line += text.count("\n")
        yield text


def display_name(file: str) -> str:
    """What to call a file in messages."""
    return "standard input" if file == STDIN else file


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The bytes of the text, and the file they come from."""
    if file == STDIN:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    with open(file, "rb") as raw:
        if file.lower().endswith(".gz"):
            with gzip.open(raw) as unpacked:
                yield unpacked, raw  # type: ignore[misc]
        else:
            yield raw, raw


def _chunks(file: str, on_bytes: Report | None) -> Iterator[bytes]:
    try:
        with _opened(file) as (handle, raw):
            place = 0
            while chunk := handle.read(READ_BYTES):
                if on_bytes is not None:
                    now = raw.tell() if raw.seekable() else place + len(chunk)
                    on_bytes(now - place)
                    place = now
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
    """Why a record has no text.

    Attributes:
        kind: "JSON", "field" or "encoding".
        message: with the place.
        hint: what to do.
    """

    kind: str
    message: str
    hint: str


def json_field(line: str, place: str, field: str) -> str | Problem:
    """The text in a field of an object of JSON, such as a line of JSONL.

    Args:
        line: the object.
        place: of it, for messages.
        field: its name.
    """
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = 'Each line is one object: {"text": "..."}.'
        return Problem("JSON", f"{place}: not valid JSON ({error})", hint)
    if not isinstance(record, dict):
        message = f"{place}: expected an object, found {type(record).__name__}"
        return Problem("JSON", message, 'Each line is one object: {"text": "..."}.')
    if field not in record:
        hint = f"{did_you_mean(field, record)} Say which one it is with --field NAME."
        return Problem("field", f"{place}: no field '{field}'", hint)
    return checked_text(record[field], place, field)


def checked_text(value: object, place: str, field: str) -> str | Problem:
    """A value, if it is a text that can be encoded."""
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
