"""What a corpus is read from: files, folders, globs, datasets on the Hugging Face Hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pretune.errors import DataError, did_you_mean
from pretune.text.decode import SURROGATE, Problem, checked_text, decoded, encoding_hint, json_field
from pretune.text.raw_text import ABOUT, IN_FOLDERS, text_kind

if TYPE_CHECKING:
    from pyarrow import Array

PARQUET = ".parquet"


@dataclass(frozen=True)
class CorpusSource:
    """One file, or one split of a Hub dataset.

    Attributes:
        name: as it is named in messages.
        kind: "text", "json", "parquet" or "hub".
        size: bytes of the file, as it lies on the disk; 0 for a Hub dataset.
        modified: when the file was changed last, in nanoseconds; 0 for a Hub dataset.
    """

    name: str
    kind: str
    size: int = 0
    modified: int = 0

    @property
    def path(self) -> str:
        """The one name that all spellings of its path have in common."""
        return self.name if self.kind == "hub" else os.path.realpath(self.name)

    def noted(self) -> dict[str, Any]:
        """What the manifest of a corpus says about it."""
        return {
            "name": self.name,
            "path": self.path,
            "size": self.size,
            "modified": self.modified,
        }

    def is_noted(self, noted: Mapping[str, Any]) -> bool:
        """Whether a manifest speaks of this source as it is now.

        Manifests of earlier versions have neither `path` nor `modified`.
        """
        name = noted["name"]
        path = noted.get("path", name if self.kind == "hub" else os.path.realpath(name))
        modified = noted.get("modified", self.modified)
        return (path, noted["size"], modified) == (self.path, self.size, self.modified)


def find_sources(given: Sequence[str | Path]) -> list[CorpusSource]:
    """All sources, in the order given; those of a folder or a glob in the order of their names.
    Each file once, however its path is spelled.

    Args:
        given: files, folders (all files in them, and in the folders below, that end in one of
            `IN_FOLDERS`, `.gz` after it or not, or in `.parquet`), globs (`data/**/*.txt`), or Hub
            datasets as `owner/name[:config]:split`.

    Raises:
        DataError: one is not there or holds nothing to read, or the format is none of a corpus.
    """
    found: dict[str, CorpusSource] = {}
    for one in given:
        for source in _find(str(one)):
            found.setdefault(source.path, source)
    if not found:
        raise DataError("no corpus given", "Name files, folders, globs or Hub datasets.")
    return list(found.values())


def _find(given: str) -> list[CorpusSource]:
    from pretune.data.readers.hub import (
        HUB_DATASET,
    )  # here: it brings torch, and workers import this package

    if os.path.isfile(given):
        return [_file(given)]
    if os.path.isdir(given):
        return _in_folder(given)
    if glob.has_magic(given):
        names = sorted(name for name in glob.glob(given, recursive=True) if os.path.isfile(name))
        if not names:
            raise DataError(f"{given}: no file is called like that", "Check the pattern.")
        return [_file(name) for name in names]
    if HUB_DATASET.fullmatch(given) and not os.path.exists(given):
        return [CorpusSource(given, "hub")]
    path = Path(given)
    beside = [p.name for p in path.parent.glob("*")] if os.path.isdir(path.parent) else []
    suggestion = f" {did_you_mean(path.name, beside)}" if 0 < len(beside) < 50 else ""
    raise DataError(
        f"{given}: no such file or folder.{suggestion}",
        "Check the path; a Hub dataset is owner/name:split or owner/name:config:split.",
    )


def _in_folder(folder: str) -> list[CorpusSource]:
    names = sorted(
        str(path)
        for path in Path(folder).rglob("*")
        if _belongs(path.name.lower())
        and not path.name.lower().startswith(ABOUT)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not names:
        raise DataError(
            f"{folder}: no corpus in this folder",
            f"Its files must end in one of {', '.join((*IN_FOLDERS, PARQUET))}; others can be "
            "given by name.",
        )
    return [_file(name) for name in names]


def _belongs(name: str) -> bool:
    return name.endswith(PARQUET) or name.removesuffix(".gz").endswith(IN_FOLDERS)


def _file(name: str) -> CorpusSource:
    status = os.stat(name)
    kind = "parquet" if name.lower().endswith(PARQUET) else text_kind(name)
    return CorpusSource(name, kind, status.st_size, status.st_mtime_ns)


#: A line of JSON cannot be cut: one with more characters is an error.
MAX_JSON_LINE = 64 * 2**20
_PARQUET_ROWS = 256
_SKIP = "Or leave such documents out with --errors skip."


@dataclass(frozen=True)
class ReadingOptions:
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

    def advance(self, count: int) -> None:
        """Note that so many bytes more of the present file were read."""
        self.done += count

    def next_file(self, size: int) -> None:
        """Note that a file of this size was read to its end."""
        self._before += size
        self.done = self._before


def read_documents(
    source: CorpusSource, reading: ReadingOptions, meter: Meter
) -> Iterator[Document]:
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


def _lines(source: CorpusSource, encoding: str, longest: int, meter: Meter) -> Iterator[Line]:
    """The lines of a text file, those over `longest` characters in pieces."""
    number, first, held = 0, True, ""
    for chunk in decoded(source.name, encoding, meter.advance, marks=True):
        held += chunk
        start = 0
        while True:
            end = held.find("\n", start, start + longest) + 1
            stop = end or start + longest
            if stop > len(held):
                break
            number += first
            yield Line(number, held[start:stop], first)
            first, start = bool(end), stop
        held = held[start:]
    if held:
        yield Line(number + first, held, first)


def _problem(reading: ReadingOptions, kind: str, message: str, hint: str) -> Document:
    if reading.errors == "skip":
        return Document("", kind)
    raise DataError(message, hint)


def _of_text(source: CorpusSource, reading: ReadingOptions, meter: Meter) -> Iterator[Document]:
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
        if (mark := SURROGATE.search(line.text)) is not None:
            bad = True
            if reading.errors != "skip":
                raise DataError(
                    f"{source.name}, line {line.number}: not valid {reading.encoding.upper()} "
                    f"(byte 0x{ord(mark[0]) - 0xDC00:02x})",
                    _guess(source),
                )
        if not (ends and blank):
            yield from gathered.add("" if bad else line.text)
    yield from _finished(gathered, reading, bad)


def _finished(gathered: _Gathered, reading: ReadingOptions, bad: bool) -> Iterator[Document]:
    rest = list(gathered.end())
    if bad:
        yield Document("", "encoding")
    else:
        yield from rest


def _guess(source: CorpusSource) -> str:
    """What to try, from how the file begins; or to do without such documents."""
    with Path(source.name).open("rb") as handle:
        hint = encoding_hint(handle.read(2**16))
    return f"{hint.removesuffix('.')}. Or leave such documents out with --errors skip."


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


def _whole(text: str, reading: ReadingOptions) -> Iterator[Document]:
    gathered = _Gathered(reading.max_chars)
    yield from gathered.add(text)
    if gathered.cut:
        yield from gathered.end()
    else:  # an empty field is a document too: it counts as one that was too short
        yield Document(text)


def _of_json(source: CorpusSource, reading: ReadingOptions, meter: Meter) -> Iterator[Document]:
    for line in _lines(source, reading.encoding, MAX_JSON_LINE, meter):
        if not line.first or not line.text.strip():
            continue
        place = f"{source.name}, line {line.number}"
        if not line.text.endswith("\n") and len(line.text) >= MAX_JSON_LINE:
            message = f"{place}: over {MAX_JSON_LINE:,} characters"
            yield _problem(reading, "JSON", message, f"Repair or remove it. {_SKIP}")
        elif SURROGATE.search(line.text):
            message = f"{place}: not valid {reading.encoding.upper()}"
            hint = _guess(source)
            yield _problem(reading, "encoding", message, hint)
        else:
            yield from _of_text_or(json_field(line.text, place, reading.field), reading)


def _of_text_or(found: str | Problem, reading: ReadingOptions) -> Iterator[Document]:
    if isinstance(found, Problem):
        yield _problem(reading, found.kind, found.message, f"{found.hint} {_SKIP}")
    else:
        yield from _whole(found, reading)


def _of_columns(source: CorpusSource, reading: ReadingOptions, meter: Meter) -> Iterator[Document]:
    rows = _parquet(source, reading, meter) if source.kind == "parquet" else _hub(source, reading)
    for number, value in enumerate(rows, start=1):
        place = f"{source.name}, row {number}"
        if isinstance(value, UnicodeDecodeError):
            message = f"{place}, field '{reading.field}': not valid UTF-8 ({value.reason})"
            found: str | Problem = Problem("encoding", message, "Repair or remove the record.")
        else:
            found = checked_text(value, place, reading.field)
        yield from _of_text_or(found, reading)


def _needs_column(name: str, columns: list[str], source: CorpusSource) -> None:
    if name not in columns:
        raise DataError(
            f"{source.name}: no column '{name}'; it has {', '.join(map(repr, columns))}",
            f"{did_you_mean(name, columns)} Say which one with --field.",
        )


def _parquet(source: CorpusSource, reading: ReadingOptions, meter: Meter) -> Iterator[object]:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        with parquet.ParquetFile(source.name) as file:
            _needs_column(reading.field, file.schema_arrow.names, source)
            done = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=[reading.field]):
                yield from _values(batch.column(0))
                done += len(batch)
                meter.at(source.size * done // max(file.metadata.num_rows, 1))
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{source.name}: not a Parquet file that can be read ({error})", "Write it again."
        ) from None


def _values(column: Array) -> Iterator[object]:
    """The values of a column; of bytes in a column of texts that are none, the error.

    Nobody checks these when a file is written, nor when it is read.
    """
    import pyarrow as arrow

    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    binary = {arrow.string(): arrow.binary(), arrow.large_string(): arrow.large_binary()}
    if column.type not in binary:
        yield from column.to_pylist()
        return
    for raw in column.cast(binary[column.type]).to_pylist():
        try:
            yield None if raw is None else raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield error


def _hub(source: CorpusSource, reading: ReadingOptions) -> Iterator[object]:
    from pretune.data.readers.hub import hub_table

    table = hub_table(source.name)
    _needs_column(reading.field, table.column_names, source)
    for batch in table.select_columns([reading.field]).iter(_PARQUET_ROWS):
        yield from batch[reading.field]
