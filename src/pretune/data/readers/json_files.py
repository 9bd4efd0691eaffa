"""JSON files: one object or list a line, an array of these, or such an array under `data`.

The objects are records, or SQuAD's articles or paragraphs, which hold many. The lists are a table,
whose first line names the columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
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
from pretune.data.readers.squad import is_squad, squad_rows
from pretune.data.records import Records, all_columns
from pretune.errors import DataError, describe_value
from pretune.text.decode import decode_file, lines_in, lines_of
from pretune.text.file_kinds import suffix_of

_OBJECT = 'is one object, such as {"text": "...", "label": "..."}.'
#: What may stand beside `data` in a file whose records are there.
_ABOUT = {
    *("version", "name", "title", "description", "license", "language", "date", "url"),
    *("split", "info", "count", "total", "schema"),
}


def read_json(
    path: Path,
    encoding: str = "utf-8",
    columns: Mapping[str, str] = MappingProxyType({}),
    *,
    keep_bad: bool = False,
) -> Records:
    """Read a file of JSON: its content tells which of the layouts it has.

    Args:
        path: the file.
        encoding: of its text.
        columns: the task's names of columns -> those in the data. Numbers say that the first list
            of a file of lists is a record (see `numbered_columns`).
        keep_bad: whether lines that are no JSON, and records that are no objects, are left out and
            counted (`Records.bad`) instead of being an error.

    Raises:
        DataError: not valid JSON, or something else than objects or lists; names the line or the
            row.
    """
    text = decode_file(path, encoding)
    whole = _whole_value(path, text)
    notes: tuple[str, ...] = ()
    lines: list[int] | None = None
    bad = BadRecords(str(path))
    # An array of records, an object that holds one, or a record a line.
    if isinstance(whole, list):
        values, places = whole, [f"row {number}" for number in range(1, len(whole) + 1)]
    elif (cells := _of_pandas(whole)) is not None:
        values, places = cells, [f"row {number}" for number in range(1, len(cells) + 1)]
        notes = (f"{path}: read as the JSON that pandas writes",)
    elif (under := _under_data(whole)) is not None:
        values, places = under, [f"data[{number}]" for number in range(len(under))]
        if not is_squad(values):
            notes = (f"{path}: the records are those under 'data'",)
    else:
        values, lines = _line_values(path, text, bad) if whole is None else ([whole], [1])
        places = [f"line {number}" for number in lines]
    total = len(values) + bad.count
    # What the values are.
    if bad.count and not keep_bad:
        raise bad.error(total)
    if is_squad(values):
        rows = squad_rows(path, values, places)
        return Records(rows, str(path), None, all_columns(rows))
    if values and isinstance(values[0], list):
        return _table(path, values, places, lines, columns).noting(*notes)
    good = [number for number, value in enumerate(values) if isinstance(value, dict)]
    if len(good) < len(values):
        each = "element" if lines is None else "line"
        for place, value in zip(places, values, strict=True):
            if not isinstance(value, dict):
                bad.add(_no_object(path, place, value, each))
    if bad.count and not (keep_bad and good):
        raise bad.error(total)
    records = Records(values, str(path), lines, notes=notes, bad=bad if bad.count else None)
    records = records if len(good) == len(values) else records.take(good)
    return replace(records, columns=all_columns(records.rows))


def json_parts(
    path: Path, chunks: Iterator[str], size: int, *, keep_bad: bool = False
) -> Iterator[Records] | None:
    """Read JSON lines, `size` at a time; None where the file has to be read as a whole.

    Each part has the columns of all rows so far. With `keep_bad` lines that are no objects are left
    out and counted (`Records.bad`).

    Raises:
        DataError: a line is no JSON, or no object; names it.
    """
    lines = ((number, line) for number, line in enumerate(lines_in(chunks), 1) if line.strip())
    first = next(lines, None)
    # An array, a table of lists, and SQuAD's layout are told by all of it.
    if first is None or suffix_of(path) == ".json" or first[1].lstrip()[:1] != "{":
        return None
    with suppress(ValueError, RecursionError):
        if is_squad([json.loads(first[1])]):
            return None
    return _object_parts(path, chain([first], lines), size, keep_bad=keep_bad)


def _object_parts(
    path: Path, lines: Iterator[tuple[int, str]], size: int, *, keep_bad: bool
) -> Iterator[Records]:
    columns: tuple[str, ...] = ()
    while part := list(islice(lines, size)):
        bad, rows, numbers = BadRecords(str(path)), [], []
        for number, line in part:
            value, problem = _line_value(path, number, line)
            if problem is None and not isinstance(value, dict):
                problem = _no_object(path, f"line {number}", value, "line")
            if problem is not None:
                bad.add(problem)
                continue
            rows.append(value)
            numbers.append(number)
        if bad.count and not (keep_bad and rows):
            raise bad.error(len(part))
        columns = tuple(dict.fromkeys([*columns, *all_columns(rows)]))
        yield Records(rows, str(path), numbers, columns, bad=bad if bad.count else None)


def _whole_value(path: Path, text: str) -> Any:
    """The value of a file that is one array, or an object in a `.json`; None for JSON lines."""
    start = text.lstrip()[:1]
    if start != "[" and (start != "{" or suffix_of(path) != ".json"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # A broken object, and more after the first value, are for those who name the line.
        if start == "{" or error.msg == "Extra data":
            return None
        raise _not_json(str(path), error) from None
    except (ValueError, RecursionError) as error:
        if start == "{":
            return None
        raise _not_json(str(path), error) from None


def _not_json(place: str, error: Exception) -> DataError:
    return DataError(f"{place}: not valid JSON ({error})", "Repair it at that place.")


def _of_pandas(whole: Any) -> list[Any] | None:
    """The rows of what `DataFrame.to_json` writes: by columns, or with orient="index" or "split".

    None for an object of another kind.
    """
    if not isinstance(whole, dict) or not whole:
        return None
    if {"columns", "data"} <= {*whole} <= {"columns", "index", "data"}:
        rows = [whole["columns"], *whole["data"]]
        return rows if all(isinstance(row, list) for row in rows) else None
    cells = [*whole.values()]
    if not all(isinstance(own, dict) for own in cells):
        return None
    if all(name.isdecimal() for name in whole):
        return cells
    index = cells[0].keys()
    if index and all(own.keys() == index for own in cells) and all(map(str.isdecimal, index)):
        return [{name: own[i] for name, own in whole.items()} for i in index]
    return None


def _under_data(whole: Any) -> list[Any] | None:
    """The records of an object that holds them as `data`; None for an object of another kind."""
    values = whole.get("data") if isinstance(whole, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        return None
    return values if is_squad(values) or not {*whole} - {"data"} - _ABOUT else None


def _line_values(path: Path, text: str, bad: BadRecords) -> tuple[list[Any], list[int]]:
    """The values of JSON lines, and the line (1-based) of each; blank lines are passed over.

    Lines that are no JSON are added to those that are `bad`.
    """
    values: list[Any] = []
    lines: list[int] = []
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        value, problem = _line_value(path, number, line)
        if problem is not None:
            bad.add(problem)
            continue
        values.append(value)
        lines.append(number)
    return values, lines


def _line_value(path: Path, number: int, line: str) -> tuple[Any, DataError | None]:
    """The value of a line, or the error about it."""
    try:
        return json.loads(line), None
    except (ValueError, RecursionError) as error:  # ValueError also for a number of 5000 digits
        what = f"{path}, line {number}: not valid JSON ({error})"
        return None, DataError(what, f"Each line {_OBJECT}")


def _no_object(path: Path, place: str, value: Any, each: str) -> DataError:
    return DataError(
        f"{path}, {place}: expected an object, found {type(value).__name__}",
        f"Each {each} {_OBJECT}",
    )


def _table(
    path: Path,
    values: Sequence[Any],
    places: Sequence[str],
    lines: list[int] | None,
    columns: Mapping[str, str],
) -> Records:
    """The records of a file of lists, whose first names the columns unless these are numbered."""
    # The names of the columns.
    first = values[0]
    numbers = numbered_columns([c if isinstance(c, str) else "" for c in first], columns)
    named = all(isinstance(cell, str) and cell for cell in first)
    if not first or (numbers is None and not (named and len({*first}) == len(first))):
        raise DataError(
            f"{path}, {places[0]}: expected an object, found a list that names no columns",
            f"Each record {_OBJECT} Or the first list names the columns, "
            '["text", "label"]; or number them: data.columns.text=1 data.columns.label=2.',
        )
    names, begin, rows = numbers or first, int(numbers is None), []
    # The other lists, or all of them.
    for place, value in zip(places[begin:], values[begin:], strict=True):
        if not isinstance(value, list) or len(value) != len(names):
            given = f"{len(value)} values" if isinstance(value, list) else describe_value(value)
            raise DataError(
                f"{path}, {place}: {given}, but {places[0]} is a list of {len(names)}",
                "Each list has a value for each column.",
            )
        rows.append(dict(zip(names, value, strict=True)))
    own, numbered = lines and lines[begin:], range(begin + 1, len(values) + 1)
    records = Records(rows, str(path), own, tuple(names), numbers=numbered)
    if numbers is not None:
        return records.noting(numbered_note(path, places[0], first))
    if looks_like_record(names, rows):
        records = records.noting(names_note(path, places[0], names))
    return replace(records, header_line=1 if lines is None else lines[0])
