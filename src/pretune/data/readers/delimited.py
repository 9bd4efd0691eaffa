"""Tables with a delimiter: CSV and TSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pretune.data.bad_records import BadRecords
from pretune.data.columns import (
    looks_like_record,
    names_note,
    numbered_columns,
    numbered_note,
)
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.text.decode import LONGEST_RECORD, file_chunks, lines_in

_INDEX, _NOTHING = re.compile(r"\s*\d+\s*"), re.compile(r"\s*")
#: The first line in which Excel says the delimiter; its end stays, so that lines keep their number.
_SEPARATOR = re.compile(r'"?sep=([^\r\n"])"?[^\S\r\n]*(?=[\r\n])', re.IGNORECASE)
_FIRST_LINE = re.compile(r"[^\r\n]*\S[^\r\n]*")
#: Delimiters that tables have, and their names for people.
_NAMES = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
#: How much is read to tell the delimiter.
_PROBE_CHARS, _PROBE_LINES = 1 << 16, 50
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # with its end


def read_table(
    path: Path,
    encoding: str,
    delimiter: str,
    quoting: str,
    columns: Mapping[str, str] = MappingProxyType({}),
    *,
    keep_bad: bool = False,
) -> Records:
    """Read a table as a whole; see `table_parts`."""
    chunks = file_chunks(path, encoding, longest_line=LONGEST_RECORD)
    how = (delimiter, quoting, columns)
    (records,) = table_parts(path, chunks, *how, keep_bad=keep_bad)
    return records


def table_parts(
    path: Path,
    chunks: Iterator[str],
    delimiter: str,
    quoting: str,
    columns: Mapping[str, str],
    *,
    size: int | None = None,
    keep_bad: bool = False,
) -> Iterator[Records]:
    """Read a table whose first line names the columns.

    Columns may lack a name, and are left out, where they hold nothing after all others (delimiters
    at the end of each line), or numbers before them (the index that pandas writes). Where the lines
    are separated by another delimiter throughout, that one is taken; `sep=;` in the first line, as
    Excel writes it, decides it.

    Args:
        path: the file.
        chunks: its text.
        delimiter: what the file's name says, a comma or a tab.
        quoting: `standard`: double quotes hold fields together; `none`: they are characters like
            any other; `auto`: standard, but none in a `.tsv` with tabs.
        columns: the task's names of columns -> those in the data. Numbers say that the table has no
            line with names (see `numbered_columns`).
        size: rows at a time; None: all.
        keep_bad: whether rows with another number of fields than the header are left out and
            counted (`Records.bad`) instead of being an error.

    Yields:
        the rows in parts, at least one. A note is at the part that it is about.

    Raises:
        DataError: a header with empty or repeated names, a row with another number of fields than
            the header, or a quote that is left open; names the line.
    """
    begin, chunks = _begun(chunks)
    # The delimiter: what the first line says, or what all lines have, or what the name says.
    notes, own = [], delimiter
    if (stated := _SEPARATOR.match(begin)) is not None:
        delimiter, begin = stated[1], begin[stated.end() :]
    elif (other := _other_delimiter(path, begin, delimiter, quoting)) is not None:
        delimiter = other
        notes.append(f"{path}: read with {_NAMES[other]} between columns, not {_NAMES[own]}")
    quoted = quoting == "standard" or (quoting == "auto" and (own, delimiter) != ("\t", "\t"))
    # The first line that is not blank is the header.
    lines = _fields(path, chain([begin], chunks), delimiter, quoted=quoted)
    header_line, cells = next(((number, cells) for number, cells in lines if cells), (0, []))
    header = tuple(cell.strip().strip("\ufeff") for cell in cells)
    numbers = numbered_columns(header, columns)
    if numbers is not None:
        notes.append(numbered_note(path, f"line {header_line}", cells))
        lines, header = chain([(header_line, cells)], lines), tuple(numbers)
    table = _Table(path, header_line, header, delimiter, quoted=quoted)
    if table.has_index:
        notes.append(f"{path}: the first column, numbers without a name, is left out as an index")
    part, named = _TablePart(table), numbers is None
    for number, fields in _records(lines, header):
        part.add(number, fields, named=named)
        if len(part.rows) == size:
            yield part.records(notes, named=named, keep_bad=keep_bad)
            part, notes = _TablePart(table, first=False), []
    if part.first or part.rows or part.bad.count:
        yield part.records(notes, named=named, keep_bad=keep_bad)


def _begun(chunks: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The beginning of a text, by which its delimiter is told, and the chunks after it."""
    begin = ""
    for chunk in chunks:
        begin = (begin + chunk).lstrip("\ufeff")
        if len(begin) > _PROBE_CHARS:
            break
    return begin, chunks


def _records(
    lines: Iterator[tuple[int, list[str]]], header: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table after its header; blank ones are left out, as pandas does.

    In a table of one column a blank line is an empty cell, as Excel writes it; not so after the
    last cell.
    """
    blank: list[int] = []
    for number, fields in lines:
        if not fields:
            blank.append(number)
            continue
        if len(header) == 1:
            yield from ((empty, [""]) for empty in blank)
        blank = []
        yield number, fields


def _other_delimiter(path: Path, text: str, delimiter: str, quoting: str) -> str | None:
    """The delimiter of a table that does not have the one of its name; None where it has that.

    The first line has names with it and without that of the name, and as many fields as at least
    half of the next lines.
    """
    first = _FIRST_LINE.search(text)
    if first is None or delimiter in first[0]:
        return None
    headers = fitting_headers(text, quoted=quoting != "none")
    return next((other for other, names in headers if all(names)), None)


def fitting_headers(text: str, *, quoted: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Yield the delimiters that a table may have, each with the names in its first line.

    There are several names, and at least half of the next lines have as many fields. `sep=;` before
    it, as Excel writes it, leaves that delimiter alone.
    """
    stated = _SEPARATOR.match(text)
    begin = text[stated.end() if stated else 0 :][:_PROBE_CHARS]
    for delimiter in stated[1] if stated else _NAMES:
        header, *others = _sample(begin, delimiter, quoted=quoted) or [[]]
        fits = sum(len(fields) == len(header) for fields in others)
        if len(header) > 1 and 2 * fits >= len(others):
            yield delimiter, [cell.strip() for cell in header]


def _sample(text: str, delimiter: str, *, quoted: bool) -> list[list[str]]:
    """The fields of some lines, up to a quote that is left open, as in a text that is cut."""
    lines = []
    with suppress(DataError):
        for _, fields in islice(_fields(Path(), [text], delimiter, quoted=quoted), _PROBE_LINES):
            if fields:
                lines.append(fields)
    return lines


class _TablePart:
    """Some rows of a table, and what there is to tell of them."""

    def __init__(self, table: _Table, *, first: bool = True) -> None:
        self.table, self.first = table, first
        self.rows: list[dict[str, Any]] = []
        self._places: list[int] = []
        self._again: list[int] = []
        self.bad = BadRecords(str(table.path))

    def add(self, number: int, fields: Sequence[str], *, named: bool) -> None:
        """Take in line `number`; where columns are `named`, it may be the header again."""
        if named and self.table.is_header(number, fields):
            self._again.append(number)
        elif len(fields) != len(self.table.header):
            self.bad.add(self.table.other_width(number, fields))
        else:
            self.rows.append(self.table.row(fields))
            self._places.append(number)

    def records(self, notes: Sequence[str], *, named: bool, keep_bad: bool) -> Records:
        """The rows, with notes on the table and on them; a DataError about those that are bad."""
        table, rows, path, told = self.table, self.rows, self.table.path, [*notes]
        if self.bad.count and not (keep_bad and rows):
            raise self.bad.error(len(rows) + self.bad.count)
        if named and self.first and looks_like_record(table.names, rows):
            told.append(names_note(path, f"line {table.line}", table.names))
        alone = len(table.header) == 1
        empty = [i for i, row in enumerate(rows) if not any(row.values())] if alone else []
        if empty:
            told.append(
                f"{path}: empty cells, as blank lines are in one column: {len(empty):,}, the first "
                f"on line {self._places[empty[0]]}"
            )
        if self._again:
            first, more = self._again[0], len(self._again) - 1
            told.append(
                f"{path}: line {first}{f' and {more:,} more' if more else ''}, the names of the "
                "columns again, left out"
            )
        return Records(
            *(rows, str(path), self._places, table.names),
            header_line=table.line if named else None,
            notes=tuple(told),
            bad=self.bad if self.bad.count else None,
        )


class _Table:
    """What the header of a table says of its rows.

    Raises:
        DataError: the header has empty or repeated names.
    """

    def __init__(
        self, path: Path, line: int, header: tuple[str, ...], delimiter: str, *, quoted: bool
    ) -> None:
        self.path, self.line, self.header = path, line, header
        self.delimiter, self.quoted = delimiter, quoted
        self.names = tuple(name for name in header if name)
        self.spare = _spare_columns(header)
        if len({*self.names}) < len(self.names) or len(self.names) + len(self.spare) < len(header):
            raise self._bad_header()

    @property
    def has_index(self) -> bool:
        """Whether the first column is one of numbers without a name, as pandas writes its index."""
        return self.spare.get(0) is _INDEX

    def is_header(self, number: int, fields: Sequence[str]) -> bool:
        """Whether line `number` has the names of the columns again, as where files were joined.

        Raises:
            DataError: it has them in another order, so that what follows would be mixed up.
        """
        cells = tuple(cell.strip() for cell in fields)
        if len(self.names) < 2 or len(cells) != len(self.header) or {*cells} != {*self.header}:
            return False
        if cells != self.header:
            raise DataError(
                f"{self.path}, line {number}: the names of the columns again, in another order",
                "Two files were joined: bring their columns into the same order, and remove the "
                "line.",
            )
        return True

    def other_width(self, number: int, fields: Sequence[str]) -> DataError:
        """The error about line `number`, which has another number of fields than the header."""
        named = _NAMES.get(self.delimiter, repr(self.delimiter))
        more = self.quoted and len(fields) > len(self.header)
        repair = f"Put a text with {named} in double quotes" if more else "Repair the line"
        return DataError(
            f"{self.path}, line {number}: {len(fields)} fields, but the header names "
            f"{len(self.header)} ({', '.join(self.header)})",
            f"{repair}, or change how quotes are read: "
            f"data.quoting={'none' if self.quoted else 'standard'}",
        )

    def row(self, fields: Sequence[str]) -> dict[str, Any]:
        """The cells of a line by the names of their columns.

        Raises:
            DataError: there is something in a column without a name.
        """
        # A column without a name that holds anything else is a mistake in the header after all.
        if any(not pattern.fullmatch(fields[place]) for place, pattern in self.spare.items()):
            raise self._bad_header()
        return {name: cell for name, cell in zip(self.header, fields, strict=True) if name}

    def _bad_header(self) -> DataError:
        return DataError(
            f"{self.path}, line {self.line}: the header has empty or repeated names: "
            f"{list(self.header)}",
            "The first line must name every column once. If it is a record, number the columns: "
            "data.columns.text=1 data.columns.label=2, for example.",
        )


def _spare_columns(header: Sequence[str]) -> dict[int, re.Pattern[str]]:
    """The columns that may lack a name, by their places, and what may stand in them."""
    last = max((place for place, name in enumerate(header) if name), default=len(header))
    index = {0: _INDEX} if header and not header[0] and last < len(header) else {}
    return index | dict.fromkeys(range(last + 1, len(header)), _NOTHING)


def _fields(
    path: Path, chunks: Iterable[str], delimiter: str, *, quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    """The number and the fields of each line; a blank line has none."""
    if not quoted:
        for number, line in enumerate(lines_in(chunks), start=1):
            yield number, line.split(delimiter) if line else []
        return
    # The limit holds for the whole process, to guard its memory; texts over a task's own limit are
    # reported later, with their line and column. Lines are cut one by one: a StringIO takes four
    # bytes for each character.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_RECORD))
    reader = csv.reader(_ended_lines(chunks), delimiter=delimiter, strict=True)
    number = 1
    try:
        for fields in reader:
            yield number, fields
            number = reader.line_num + 1  # a quoted field may hold several lines
    except csv.Error as error:
        raise DataError(
            f"{path}, line {number}: {error}",
            f"A field may have {LONGEST_RECORD:,} characters."
            if "limit" in str(error)
            else "A double quote inside a quoted field is written twice; if quotes mean nothing in "
            "this file, set data.quoting=none",
        ) from None


def _ended_lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in chunks, each with its end."""
    rest = ""
    for chunk in chunks:
        text = rest + chunk
        # A carriage return at the end may be the first half of a line end.
        end = max(text.rfind("\n"), text.rfind("\r", 0, len(text) - 1)) + 1
        for match in _LINE.finditer(text, 0, end):
            yield match[0]
        rest = text[end:]
    for match in _LINE.finditer(rest):
        yield match[0]
