"""From the bytes of files to text, as a stream; every error names file and line."""

from __future__ import annotations

import codecs
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pretune.errors import DataError, describe_value, did_you_mean
from pretune.text.byte_stream import OnBytes, display_name, file_bytes
from pretune.text.encoding_guess import encoding_hint

#: The longest line of a file whose lines are records, in characters.
LONGEST_RECORD = 1 << 26
#: A packed file with more characters than this is not unpacked into memory.
MOST_UNPACKED = 1 << 32
#: Half of a surrogate pair. JSON can spell one alone, and tokenizers refuse it; `decoded` with
#: `marks` writes the second half of one for a byte that is not valid in the encoding.
SURROGATE = re.compile("[\ud800-\udfff]")
#: Name of the error handler that writes those marks.
_MARK_ERRORS = "pretune-mark"
_BYTE_ORDER_MARK = "\ufeff"


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
    with one. `errors` names the handler for bytes that are not valid;
    where the text was `started` before, the first character is a character like others.
    """

    def __init__(self, encoding: str, errors: str = "strict", *, started: bool = False) -> None:
        super().__init__(errors)
        self._decoder = codecs.getincrementaldecoder(check_encoding(encoding))(errors)
        self._started = started

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


def lines_in(chunks: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in chunks, as `lines_of` splits it."""
    rest, ended = "", False
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        ended = ended or bool(whole)
        yield from (line.removesuffix("\r") for line in whole)
    # Without any line feed the text may be of an old Mac.
    if not ended:
        yield from lines_of(rest)
    elif rest:
        yield rest.removesuffix("\r")


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
    span: tuple[int, int] | None = None,
) -> Iterator[str]:
    """The text of a file, a chunk at a time; a byte order mark is dropped.

    Args:
        file: its path; gzip is unpacked. `STDIN` is standard input.
        encoding: of the text.
        on_bytes: called with the number of bytes read from the disk since the last call.
        marks: write a lone surrogate, 0xDC00 plus the byte, for each invalid byte instead of
            raising an error, and translate all line ends to line feeds.
        option: see `encoding_hint`.
        span: see `file_bytes`; a character must begin at its first byte. Lines are counted from
            there.

    Raises:
        DataError: the file cannot be read, is no text, or is not in that encoding; names file and
            line.
    """
    name = check_encoding(encoding)
    started = span is not None and span[0] > 0
    decoder = TextDecoder(encoding, _MARK_ERRORS if marks else "strict", started=started)
    newlines = io.IncrementalNewlineDecoder(decoder if marks else None, translate=marks)
    line, start = 1, b""
    chunks = file_bytes(file, on_bytes, wide=is_wide(name), span=span)
    for chunk in itertools.chain(chunks, [b""]):
        start = start or chunk
        try:
            text = (newlines if marks else decoder).decode(chunk, final=not chunk)
        except UnicodeError as error:
            raise not_in(display_name(file), encoding, error, line, start, option) from None
        line += text.count("\n")
        yield text


def is_wide(encoding: str) -> bool:
    """Whether an encoding writes more than one byte for each character, as UTF-16 does."""
    return encoding.startswith(("utf-16", "utf-32"))


def not_in(
    origin: str, encoding: str, error: UnicodeError, line: int, start: bytes, option: str
) -> DataError:
    """The error about bytes that are not valid in the expected encoding.

    Args:
        origin: the file, as people call it.
        encoding: the one that was expected.
        error: of the decoder.
        line: the line (1-based) in which the bytes begin that were decoded.
        start: the beginning of the file.
        option: see `encoding_hint`.
    """
    if not isinstance(error, UnicodeDecodeError):  # some of Python's encodings do not name a place
        hint = encoding_hint(start, start, 0, option, encoding)
        return DataError(f"{origin}: not valid {encoding.upper()} ({error})", hint)
    # The part before the bad byte tells the line.
    raw, place = error.object, error.start
    line += raw[:place].decode(error.encoding, "ignore").count("\n")
    byte = "".join(f" (byte 0x{b:02x})" for b in raw[place : place + 1])
    return DataError(
        f"{origin}, line {line}: not valid {encoding.upper()}{byte}",
        encoding_hint(start, raw, place, option, check_encoding(encoding)),
    )


def decode_file(path: Path, encoding: str = "utf-8", *, longest_line: int | None = None) -> str:
    """The whole text of a data file, without a byte order mark.

    Raises:
        DataError: as in `decoded`; a line has over `longest_line` characters; or a packed file has
            more text than `MOST_UNPACKED`.
    """
    return "".join(file_chunks(path, encoding, longest_line=longest_line))


def file_chunks(
    path: Path,
    encoding: str = "utf-8",
    *,
    longest_line: int | None = None,
    in_memory: bool = True,
    on_bytes: OnBytes | None = None,
) -> Iterator[str]:
    """The text of a data file, a chunk at a time, without a byte order mark.

    Args:
        path: the file.
        encoding: of the text.
        longest_line: the most characters of a line.
        in_memory: whether all of it is to be kept, so that it must not be larger than
            `MOST_UNPACKED`.
        on_bytes: called with the number of bytes read from the disk since the last call.

    Raises:
        DataError: as `decode_file` does.
    """
    line, held, total = 1, 0, 0
    for text in decoded(str(path), encoding, on_bytes, option="data.encoding="):
        line += text.count("\n")
        # Only lines that go on over several chunks can be too long.
        rest = len(text) - 1 - max(text.rfind("\n"), text.rfind("\r"))
        held = rest if rest < len(text) else held + rest
        if longest_line is not None and held > longest_line:
            raise DataError(
                f"{path}, line {line}: over {longest_line:,} characters without a line end",
                "Each line is a record; look for line ends that are missing.",
            )
        total += len(text)
        if in_memory and total > MOST_UNPACKED and total > os.path.getsize(path):
            raise DataError(
                f"{path}: unpacks to over {MOST_UNPACKED:,} characters",
                "Decompress it first, or prepare it as a corpus: pretune prepare",
            )
        yield text


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
