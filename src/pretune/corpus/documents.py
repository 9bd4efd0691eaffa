"""Documents out of sources, one after the other: memory does not grow with the corpus."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pretune.corpus.sources import Source
from pretune.errors import DataError, did_you_mean

#: A line of JSON cannot be cut: one with more characters is an error.
MAX_JSON_LINE = 64 * 2**20
_PARQUET_ROWS = 256
_MARK = re.compile("[\ud800-\udfff]")
_FIX = "Repair or remove it, or leave such documents out with --errors skip."


@dataclass(frozen=True)
class Reading:
    """How documents are read.

    Attributes:
        documents: of text files: "blank-line" (blank lines lie between documents), "line" (each
            line is one) or "file".
        field: of JSON lines, Parquet and Hub datasets: the field with the text.
        encoding: of text files and JSON lines.
        errors: "stop" ends at the first document that cannot be read, "skip" leaves it out.
        max_chars: a longer document is cut into several, at the end of a line or a word if there
            is one in its second half.
    """

    documents: str = "blank-line"
    field: str = "text"
    encoding: str = "utf-8"
    errors: str = "stop"
    max_chars: int = 1_000_000


class Document(NamedTuple):
    """A document as it was read.

    Attributes:
        text: of it; empty if it could not be read.
        problem: why it could not: "encoding", "JSON" or "field".
        cut: whether it is the second or a later piece of a document that was too long.
    """

    text: str
    problem: str | None = None
    cut: bool = False


@dataclass
class Meter:
    """How far the reading is.

    Attributes:
        done: bytes of all sources that were read.
    """

    done: int = 0
    _before: int = field(default=0, repr=False)

    def at(self, position: int) -> None:
        """Note the place in the present file."""
        self.done = self._before + position

    def next_file(self, size: int) -> None:
        """Note that a file of this size was read to its end."""
        self._before += size
        self.done = self._before


def read_documents(source: Source, reading: Reading, meter: Meter) -> Iterator[Document]:
    """All documents of a source, in order.

    Raises:
        DataError: the file cannot be read, or, unless these are skipped, a document cannot; names
            file and line.
    """
    if source.kind == "text":
        yield from _of_text(source, reading, meter)
    elif source.kind == "json":
        yield from _of_json(source, reading, meter)
    else:
        yield from _of_columns(source, reading, meter)
    meter.next_file(source.size)


class Line(NamedTuple):
    """A line of a file, or a piece of one that is longer than asked for.

    Attributes:
        number: 1-based.
        text: with its line feed.
        first: whether the line begins here.
    """

    number: int
    text: str
    first: bool


def _keep_place(error: UnicodeError) -> tuple[str, int]:
    """Put a lone surrogate where a byte has no meaning: it can stand for nothing else there."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return chr(0xDC00 + error.object[error.start]), error.end


codecs.register_error("pretune-mark", _keep_place)


def _lines(source: Source, encoding: str, longest: int, meter: Meter) -> Iterator[Line]:
    """The lines of a text file, those over `longest` characters in pieces."""
    if check_encoding(encoding) == "utf-8":
        encoding = "utf-8-sig"
    number, first = 0, True
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(Path(source.name).open("rb"))
            plain: Any = raw
            if source.zipped:
                plain = stack.enter_context(gzip.GzipFile(fileobj=raw))
            text = stack.enter_context(
                io.TextIOWrapper(plain, encoding=encoding, errors="pretune-mark")
            )
            while piece := text.readline(longest):
                number += first
                yield Line(number, piece, first)
                first = piece.endswith("\n")
                meter.at(raw.tell())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{source.name}, after line {number}: damaged gzip file ({error})",
            "Fetch or write the file again.",
        ) from None
    except OSError as error:
        raise DataError(
            f"{source.name}: cannot be read ({error.strerror or error})", "Check the file."
        ) from None


def check_encoding(encoding: str) -> str:
    """The name Python has for an encoding of texts.

    Raises:
        DataError: there is no such encoding of texts.
    """
    try:
        "".encode(encoding)  # refuses the codecs that are no encoding of texts, such as hex
        return codecs.lookup(encoding).name
    except LookupError:
        raise DataError(
            f"no encoding is called '{encoding}'", "Try utf-8, gb18030 or utf-16."
        ) from None


def _problem(reading: Reading, kind: str, message: str, hint: str = _FIX) -> Document:
    if reading.errors == "skip":
        return Document("", kind)
    raise DataError(message, hint)


def _of_text(source: Source, reading: Reading, meter: Meter) -> Iterator[Document]:
    gathered = _Gathered(reading.max_chars)
    bad = False
    for line in _lines(source, reading.encoding, reading.max_chars, meter):
        blank = not line.text.strip()
        ends = {
            "blank-line": line.first and blank,
            "line": line.first,
            "file": False,
        }[reading.documents]
        if ends:
            yield from _finished(gathered, reading, bad)
            bad = False
        if (mark := _MARK.search(line.text)) is not None:
            bad = True
            if reading.errors != "skip":
                raise DataError(
                    f"{source.name}, line {line.number}: not valid {reading.encoding.upper()} "
                    f"(byte 0x{ord(mark[0]) - 0xDC00:02x})",
                    f"{_guess(source)}Or leave such documents out with --errors skip.",
                )
        if not (ends and blank):
            yield from gathered.add("" if bad else line.text)
    yield from _finished(gathered, reading, bad)


def _finished(gathered: _Gathered, reading: Reading, bad: bool) -> Iterator[Document]:
    rest = list(gathered.end())
    if bad:
        yield Document("", "encoding")
    else:
        yield from rest


def _guess(source: Source) -> str:
    """What to try, from how the file begins."""
    with Path(source.name).open("rb") as handle:
        start = handle.read(2**16)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "It looks like UTF-16: --encoding utf-16. "
    if start[:2] == b"\x1f\x8b":
        return "It looks compressed: name it .gz, or decompress it. "
    decoder = codecs.getincrementaldecoder("gb18030")()
    try:
        text = decoder.decode(start)
    except UnicodeDecodeError:
        return "Repair that line, or say what the file is in with --encoding. "
    if any("\u4e00" <= character <= "\u9fff" for character in text):
        return "It may be Chinese text in GB18030: --encoding gb18030. "
    return "Repair that line, or say what the file is in with --encoding (such as latin-1). "


class _Gathered:
    """The text of one document as its lines come; what is over the bound is given out."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.parts: list[str] = []
        self.length = 0
        self.cut = False

    def add(self, text: str) -> Iterator[Document]:
        """Add a line, or a piece of one of at most `most` characters."""
        self.parts.append(text)
        self.length += len(text)
        while self.length > self.most:
            whole = "".join(self.parts)
            place = _cut_place(whole, self.most)
            yield Document(whole[:place], cut=self.cut)
            self.parts, self.length, self.cut = [whole[place:]], len(whole) - place, True

    def end(self) -> Iterator[Document]:
        """What is left."""
        text = "".join(self.parts).strip("\n")
        if text.strip():
            yield Document(text, cut=self.cut)
        self.parts, self.length, self.cut = [], 0, False


def _cut_place(text: str, most: int) -> int:
    for mark in ("\n", " "):
        place = text.rfind(mark, most // 2, most)
        if place >= 0:
            return place + 1
    return most


def _whole(text: str, reading: Reading) -> Iterator[Document]:
    gathered = _Gathered(reading.max_chars)
    yield from gathered.add(text)
    if gathered.cut:
        yield from gathered.end()
    else:  # an empty field is a document too: it counts as one that was too short
        yield Document(text)


def _of_json(source: Source, reading: Reading, meter: Meter) -> Iterator[Document]:
    for line in _lines(source, reading.encoding, MAX_JSON_LINE, meter):
        if not line.first or not line.text.strip():
            continue
        place = f"{source.name}, line {line.number}"
        if not line.text.endswith("\n") and len(line.text) >= MAX_JSON_LINE:
            message = f"{place}: over {MAX_JSON_LINE:,} characters"
            yield _problem(reading, "JSON", message)
        elif _MARK.search(line.text):
            message = f"{place}: not valid {reading.encoding.upper()}"
            hint = f"{_guess(source)}Or leave such documents out with --errors skip."
            yield _problem(reading, "encoding", message, hint)
        else:
            yield from _of_object(line.text, place, reading)


def _of_object(text: str, place: str, reading: Reading) -> Iterator[Document]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield _problem(reading, "JSON", f"{place}: not valid JSON ({error})")
        return
    if not isinstance(value, dict):
        message = f"{place}: expected an object, found {type(value).__name__}"
        hint = 'Each line is one object, such as {"text": "..."}.'
        yield _problem(reading, "JSON", message, hint)
    elif reading.field not in value:
        message = f"{place}: no field '{reading.field}'"
        hint = f"{did_you_mean(reading.field, value)} Say which one with --field."
        yield _problem(reading, "field", message, hint)
    else:
        yield from _of_value(value[reading.field], place, reading)


def _of_value(value: object, place: str, reading: Reading) -> Iterator[Document]:
    if not isinstance(value, str):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        message = f"{place}, field '{reading.field}': expected a text, found {kind}"
        yield _problem(reading, "field", message)
    elif half := _MARK.search(value):
        message = (
            f"{place}, field '{reading.field}': half a character, \\u{ord(half[0]):04x}, "
            f"at character {half.start() + 1}"
        )
        yield _problem(reading, "encoding", message)
    else:
        yield from _whole(value, reading)


def _of_columns(source: Source, reading: Reading, meter: Meter) -> Iterator[Document]:
    rows = _parquet(source, reading, meter) if source.kind == "parquet" else _hub(source, reading)
    for number, value in enumerate(rows, start=1):
        yield from _of_value(value, f"{source.name}, row {number}", reading)


def _needs_column(name: str, columns: list[str], source: Source) -> None:
    if name not in columns:
        raise DataError(
            f"{source.name}: no column '{name}'; it has {', '.join(map(repr, columns))}",
            f"{did_you_mean(name, columns)} Say which one with --field.",
        )


def _parquet(source: Source, reading: Reading, meter: Meter) -> Iterator[object]:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        with parquet.ParquetFile(source.name) as file:
            _needs_column(reading.field, file.schema_arrow.names, source)
            done = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=[reading.field]):
                yield from batch.column(0).to_pylist()
                done += len(batch)
                meter.at(source.size * done // max(file.metadata.num_rows, 1))
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{source.name}: not a Parquet file that can be read ({error})", "Write it again."
        ) from None


def _hub(source: Source, reading: Reading) -> Iterator[object]:
    from pretune.data import hub_table

    table = hub_table(source.name)
    _needs_column(reading.field, table.column_names, source)
    for batch in table.select_columns([reading.field]).iter(_PARQUET_ROWS):
        yield from batch[reading.field]
