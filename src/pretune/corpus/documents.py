"""What a corpus is read from, and its documents one after the other.

Sources are files, folders, globs and datasets on the Hugging Face Hub. They are read as a stream:
memory does not grow with the corpus.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pretune.data.readers.hub import HUB_DATASET, hub_table
from pretune.data.readers.parquet import cell_values, opened_parquet
from pretune.errors import DataError, did_you_mean, similar_file
from pretune.storage.object_store import is_url, listed, look_up
from pretune.text.byte_stream import is_file, spooled
from pretune.text.decode import SURROGATE, Problem, checked_text, decoded, json_field
from pretune.text.raw_text import IN_FOLDERS, files_in_folder, is_text_file, text_kind
from pretune.text.terminal import names_in_line

if TYPE_CHECKING:
    from pyarrow import Array as ArrowArray

PARQUET = ".parquet"
#: A line of JSON cannot be cut: a line with more characters is an error.
MAX_JSON_LINE = 64 * 2**20
#: Rows of a table read at a time.
_ROWS = 256
_SKIP = "Or leave such documents out with --errors skip."


@dataclass(frozen=True)
class CorpusSource:
    """One file, or one split of a Hub dataset."""

    name: str  # as it is named in messages
    kind: str  # "text", "json", "parquet" or "hub"
    size: int = 0  # bytes of the file on the disk; 0 for a Hub dataset
    modified: int = 0  # when the file was last changed, in nanoseconds; 0 for a Hub dataset

    @property
    def path(self) -> str:
        """One name for all spellings of its path."""
        return self.name if self.kind == "hub" else _path(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Its entry in the manifest of a corpus."""
        return {"name": self.name, "path": self.path, "size": self.size, "modified": self.modified}

    def matches(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of a manifest is of this source as it is now.

        Manifests of earlier versions have neither `path` nor `modified`.
        """
        name = entry["name"]
        path = entry.get("path", name if self.kind == "hub" else _path(name))
        modified = entry.get("modified", self.modified)
        return (path, entry["size"], modified) == (self.path, self.size, self.modified)


def _path(name: str) -> str:
    return name if is_url(name) else os.path.realpath(name)


def find_sources(given: Sequence[str | Path]) -> list[CorpusSource]:
    """Find all sources, in the order given, each file once, however its path is spelled.

    The files of a folder or a glob come in the order of their names.

    Args:
        given: files; folders (all files in them and in the folders below whose names end in one of
            `IN_FOLDERS`, with `.gz` after it or not, or in `.parquet`); globs (`data/**/*.txt`);
            any of these in object storage (`s3://bucket/texts`); or Hub datasets as
            `owner/name[:config]:split`.

    Raises:
        DataError: a source is missing, holds nothing to read, or has a format that is not read.
    """
    sources: dict[str, CorpusSource] = {}
    for name in given:
        for source in _find(str(name)):
            sources.setdefault(source.path, source)
    if not sources:
        raise DataError("no corpus given", "Name files, folders, globs or Hub datasets.")
    return list(sources.values())


def _find(given: str) -> list[CorpusSource]:
    # A file, a folder, a pattern or a Hub dataset: files on the disk come first.
    if is_url(given):
        return _stored(given)
    if is_file(given):
        return [_file(given)]
    if os.path.isdir(given):
        names = files_in_folder(given, lambda name: name.endswith(PARQUET) or is_text_file(name))
        if not names:
            raise DataError(
                f"{given}: no corpus in this folder",
                f"Its files must end in one of {', '.join((*IN_FOLDERS, PARQUET))}; others can be "
                "given by name.",
            )
        return [_file(name) for name in names]
    if glob.has_magic(given):
        names = sorted(name for name in glob.glob(given, recursive=True) if is_file(name))
        if not names:
            raise DataError(f"{given}: no file has such a name", "Check the pattern.")
        return [_file(name) for name in names]
    if HUB_DATASET.fullmatch(given) and not os.path.exists(given):
        return [CorpusSource(given, "hub")]
    raise DataError(
        f"{given}: no such file or folder.{similar_file(given)}",
        "Check the path; a Hub dataset is owner/name:split or owner/name:config:split.",
    )


def _stored(given: str) -> list[CorpusSource]:
    """The objects in storage that a name, a prefix or a pattern stands for."""
    whole = None if glob.has_magic(given) else look_up(given)
    stored = [whole] if whole is not None else listed(given)
    if whole is None and not glob.has_magic(given):
        stored = [own for own in stored if own.url.endswith(PARQUET) or is_text_file(own.url)]
    if not stored:
        raise DataError(
            f"{given}: no corpus is stored there",
            f"Below a prefix names must end in one of {', '.join((*IN_FOLDERS, PARQUET))}; others "
            "can be given by name.",
        )
    return [CorpusSource(own.url, _kind(own.url), own.size, own.number) for own in stored]


def _kind(name: str) -> str:
    return "parquet" if name.lower().endswith(PARQUET) else text_kind(name)


def _file(name: str) -> CorpusSource:
    # A pipe is copied first; the time of the copy tells it from an earlier pipe of that name.
    status = os.stat(spooled(name))
    return CorpusSource(name, _kind(name), status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class ReadingOptions:
    """How documents are read."""

    # What a document of a text file is: "blank-line" (blank lines separate documents), "line" (each
    # line is a document) or "file".
    documents: str = "blank-line"
    field: str = "text"  # the field with the text, in JSON lines, Parquet and Hub datasets
    encoding: str = "utf-8"  # of text files and JSON lines
    # "stop" raises an error at the first document that cannot be read, "skip" leaves such documents
    # out; of a document that is a whole file only the lines, unless more than one in 100 is bad.
    errors: str = "stop"
    # A longer document is cut into several, at the end of a line or a word where its second half
    # has such a place.
    max_chars: int = 1_000_000


class Document(NamedTuple):
    """A document as it was read."""

    text: str  # empty where it could not be read
    problem: str | None = None  # why it could not be read: "encoding", "JSON" or "field"; else None
    cut: bool = False  # whether it is the second or a later part of a document that was too long
    bad_lines: bool = False  # whether lines with bytes that are not valid were left out


@dataclass
class Meter:
    """How far the reading has come."""

    done: int = 0  # bytes read, of all sources
    _before: int = field(default=0, repr=False)

    def at(self, position: int) -> None:
        """Set the position in the current file."""
        self.done = self._before + position

    def advance(self, count: int) -> None:
        """Add bytes read from the current file."""
        self.done += count

    def next_file(self, size: int) -> None:
        """Finish the current file, which has this size."""
        self._before += size
        self.done = self._before


class Span(NamedTuple):
    """A part of a source that holds whole documents."""

    start: int  # the first byte of a text; the first row group of a table
    stop: int  # one past the last
    before: int = 0  # lines or rows before it, for messages


def read_documents(
    source: CorpusSource, options: ReadingOptions, meter: Meter, span: Span | None = None
) -> Iterator[Document]:
    """Read all documents of a source, or of a span of it, in order.

    Raises:
        DataError: the file cannot be read, or a document cannot and such are not skipped; names
            file and line.
    """
    readers = {"text": _text_documents, "json": _json_documents}
    yield from readers.get(source.kind, _table_documents)(source, options, meter, span)
    meter.next_file(source.size)


class Line(NamedTuple):
    """A line of a file, or a part of a line that is too long."""

    number: int  # 1-based
    text: str  # with its line feed
    first: bool  # whether the line begins here


def _lines(
    source: CorpusSource, encoding: str, longest: int, meter: Meter, span: Span | None
) -> Iterator[Line]:
    # `first` is false inside a line of which a part was yielded already.
    number, first, held = span.before if span else 0, True, ""
    part = (span.start, span.stop) if span else None
    for chunk in decoded(source.name, encoding, meter.advance, marks=True, span=part):
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


def _unreadable(options: ReadingOptions, kind: str, message: str, hint: str) -> Document:
    if options.errors == "skip":
        return Document("", kind)
    raise DataError(message, hint)


def _text_documents(
    source: CorpusSource, options: ReadingOptions, meter: Meter, span: Span | None
) -> Iterator[Document]:
    builder = _DocumentBuilder(options.max_chars)
    bad = False
    for line in _lines(source, options.encoding, options.max_chars, meter, span):
        # A document ends before this line if the line separates documents or is one itself.
        blank = not line.text.strip()
        units = {"blank-line": blank, "line": True, "file": False}
        ends = line.first and units[options.documents]
        if ends:
            yield from builder.finish(bad)
            bad = False
        # A byte that is not valid spoils its document and no other; of a whole file, its line.
        if (mark := SURROGATE.search(line.text)) is not None:
            if options.errors != "skip":
                raise DataError(
                    f"{source.name}, line {line.number}: not valid {options.encoding.upper()} "
                    f"(byte 0x{ord(mark[0]) - 0xDC00:02x})",
                    _encoding_hint(source, options.encoding),
                )
            if options.documents == "file":
                builder.leave_out()
                continue
            bad = True
        if not (ends and blank):
            yield from builder.add("" if bad else line.text)
    yield from builder.finish(bad)


def _encoding_hint(source: CorpusSource, encoding: str) -> str:
    """The encoding to try, guessed from the file; or to skip such documents."""
    hint = ""
    try:
        for _ in decoded(source.name, encoding):
            pass
    except DataError as error:
        hint = f"{(error.hint or '').removesuffix('.')}. "
    return f"{hint}{_SKIP}"


class _DocumentBuilder:
    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.parts: list[str] = []
        self.length = 0
        self.cut = False
        self.lines = self.bad_lines = 0  # added, and left out

    def leave_out(self) -> None:
        """Leave out a line with bytes that are not valid."""
        self.bad_lines += 1

    def _document(self, text: str) -> Document:
        # Many bad lines say that the whole is in another encoding: what is left is no text.
        if self.bad_lines > max(1, self.lines // 100):
            return Document("", "encoding", self.cut)
        return Document(text, cut=self.cut, bad_lines=self.bad_lines > 0)

    def add(self, text: str) -> Iterator[Document]:
        """Add text; yield documents as long as there is more than one can hold."""
        self.parts.append(text)
        self.length += len(text)
        self.lines += 1
        while self.length > self.longest:
            whole = "".join(self.parts)
            place = _cut_place(whole, self.longest)
            yield self._document(whole[:place])
            self.parts, self.length, self.cut = [whole[place:]], len(whole) - place, True

    def finish(self, bad: bool = False) -> Iterator[Document]:
        """End the document: yield its remaining text, unless that is blank or has bad bytes."""
        text = "".join(self.parts).strip("\n")
        if bad:
            yield Document("", "encoding")
        elif text.strip() or self.bad_lines > self.lines:
            yield self._document(text)
        self.parts, self.length, self.cut = [], 0, False
        self.lines = self.bad_lines = 0


def _cut_place(text: str, longest: int) -> int:
    for mark in ("\n", " "):
        place = text.rfind(mark, longest // 2, longest)
        if place >= 0:
            return place + 1
    return longest


def _json_documents(
    source: CorpusSource, options: ReadingOptions, meter: Meter, span: Span | None
) -> Iterator[Document]:
    for line in _lines(source, options.encoding, MAX_JSON_LINE, meter, span):
        if not line.first or not line.text.strip():
            continue
        place = f"{source.name}, line {line.number}"
        if not line.text.endswith("\n") and len(line.text) >= MAX_JSON_LINE:
            message = f"{place}: over {MAX_JSON_LINE:,} characters"
            yield _unreadable(options, "JSON", message, f"Repair or remove it. {_SKIP}")
        elif SURROGATE.search(line.text):
            message = f"{place}: not valid {options.encoding.upper()}"
            skipped = options.errors == "skip"
            hint = "" if skipped else _encoding_hint(source, options.encoding)
            yield _unreadable(options, "encoding", message, hint)
        else:
            yield from _field_documents(json_field(line.text, place, options.field), options)


def _field_documents(text: str | Problem, options: ReadingOptions) -> Iterator[Document]:
    """The documents of one field: one, several of a long text, or a document with a problem."""
    if isinstance(text, Problem):
        yield _unreadable(options, text.kind, text.message, f"{text.hint} {_SKIP}")
        return
    builder = _DocumentBuilder(options.max_chars)
    yield from builder.add(text)
    if builder.cut:
        yield from builder.finish()
    else:  # an empty field is a document too, which is dropped later as empty
        yield Document(text)


def _table_documents(
    source: CorpusSource, options: ReadingOptions, meter: Meter, span: Span | None
) -> Iterator[Document]:
    if source.kind == "parquet":
        rows = _parquet_values(source, options, meter, span)
    else:
        rows = _hub_values(source, options)
    for number, value in enumerate(rows, start=(span.before if span else 0) + 1):
        place = f"{source.name}, row {number}"
        text: str | Problem
        if isinstance(value, UnicodeDecodeError):
            message = f"{place}, field '{options.field}': not valid UTF-8 ({value.reason})"
            text = Problem("encoding", message, "Repair or remove the record.")
        else:
            text = checked_text(value, place, options.field)
        yield from _field_documents(text, options)


def _check_column(name: str, columns: list[str], source: CorpusSource) -> None:
    if name not in columns:
        raise DataError(
            f"{source.name}: no column '{name}'; it has {names_in_line(columns)}",
            f"{did_you_mean(name, columns)} Name the column of the texts with --field.",
        )


def _parquet_values(
    source: CorpusSource, options: ReadingOptions, meter: Meter, span: Span | None
) -> Iterator[object]:
    """The values of the column of texts; of bytes that are not UTF-8, the error."""
    with opened_parquet(source.name) as file:
        _check_column(options.field, file.schema_arrow.names, source)
        done = 0
        groups = None if span is None else list(range(span.start, span.stop))
        for batch in file.iter_batches(_ROWS, groups, columns=[options.field]):
            yield from cell_values(batch.column(0), _texts_or_errors)
            done += len(batch)
            meter.at(source.size * done // max(file.metadata.num_rows, 1))


def _texts_or_errors(column: ArrowArray) -> list[object]:
    import pyarrow as arrow

    binary = {arrow.string(): arrow.binary(), arrow.large_string(): arrow.large_binary()}
    if column.type not in binary:
        return list(column.to_pylist())
    # Texts are decoded here, one by one: Arrow checks them neither on writing nor on reading.
    values: list[object] = []
    for raw in column.cast(binary[column.type]).to_pylist():
        try:
            values.append(None if raw is None else raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            values.append(error)
    return values


def _hub_values(source: CorpusSource, options: ReadingOptions) -> Iterator[object]:
    table = hub_table(source.name)
    _check_column(options.field, table.column_names, source)
    for batch in table.select_columns([options.field]).iter(_ROWS):
        yield from batch[options.field]
