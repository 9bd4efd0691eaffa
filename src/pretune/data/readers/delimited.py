"""Tables with a delimiter: CSV and TSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretune.data.records import Records
from pretune.errors import DataError
from pretune.text.decode import decode_file, lines_of

_INDEX, _NOTHING = re.compile(r"\s*\d+\s*"), re.compile(r"\s*")


def read_table(path: Path, encoding: str, delimiter: str, *, quoted: bool) -> Records:
    """Read a table whose first line names the columns.

    One column may lack a name, and is left out: numbers before all other columns (the index that
    pandas writes), or nothing after all others (a delimiter at the end of each line). If `quoted`,
    double quotes hold fields together.

    Raises:
        DataError: a header with empty or repeated names, a row with another number of fields than
            the header, or a quote that is left open; names the line.
    """
    header: tuple[str, ...] = ()
    header_line, spare = 0, None
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    text = decode_file(path, encoding)
    for number, fields in _fields(path, text, delimiter, quoted=quoted):
        # The first line that is not blank is the header.
        if not header:
            header_line, header = number, tuple(name.strip() for name in fields)
            spare = _nameless_column(header)
            if len(set(header)) < len(header) or ("" in header and spare is None):
                raise _bad_header(path, header_line, header)
            continue
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, but the header names {len(header)} "
                f"({', '.join(header)})",
                f"Repair the line, or change how quotes are read: data.quoting="
                f"{'none' if quoted else 'standard'}",
            )
        row = dict(zip(header, fields, strict=True))
        # A column without a name that holds anything else is a mistake in the header after all.
        if spare is not None and not spare.fullmatch(row.pop("")):
            raise _bad_header(path, header_line, header)
        rows.append(row)
        lines.append(number)
    return Records(rows, str(path), lines, tuple(name for name in header if name))


def _nameless_column(header: tuple[str, ...]) -> re.Pattern[str] | None:
    """What may stand in the column without a name; None where no such column is allowed."""
    if len(header) < 2 or header.count("") != 1:
        return None
    return _INDEX if header[0] == "" else _NOTHING if header[-1] == "" else None


def _bad_header(path: Path, number: int, header: tuple[str, ...]) -> DataError:
    return DataError(
        f"{path}, line {number}: the header has empty or repeated names: {list(header)}",
        "The first line must name every column once.",
    )


def _fields(
    path: Path, text: str, delimiter: str, *, quoted: bool
) -> Iterator[tuple[int, list[str]]]:
    if not quoted:
        for number, line in enumerate(lines_of(text), start=1):
            if line:
                yield number, line.split(delimiter)
        return
    # The limit holds for the whole process, to guard other programs against memory; texts over our
    # own limit are reported later, with their line and column.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield number, fields
            number = reader.line_num + 1  # a quoted field may hold several lines
    except csv.Error as error:
        raise DataError(
            f"{path}, line {number}: {error}",
            "A double quote inside a quoted field is written twice; if quotes mean nothing in this "
            "file, set data.quoting=none",
        ) from None
