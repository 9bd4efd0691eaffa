"""JSON files: one object a line, an array of objects, or SQuAD's nested layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretune.data.readers.squad import squad_rows
from pretune.data.records import Record, Records, all_columns
from pretune.errors import DataError
from pretune.text.decode import decode_file

_OBJECT = 'is one object, such as {"text": "...", "label": "..."}.'


def read_json(path: Path, encoding: str = "utf-8") -> Records:
    """Read a file of JSON: its content tells which of the three layouts it has.

    Raises:
        DataError: not valid JSON, or something else than objects; names the line or the row.
    """
    text = decode_file(path, encoding)
    lines: list[int] | None = None
    if text.lstrip().startswith("["):
        rows = _array_rows(path, text)
    elif path.suffix.lower() == ".json" and (nested := squad_rows(path, text)) is not None:
        rows = nested
    else:
        rows, lines = _line_rows(path, text)
    return Records(rows, str(path), lines, all_columns(rows))


def _array_rows(path: Path, text: str) -> list[Record]:
    try:
        rows: list[Record] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})", "Repair it at that place.") from None
    for number, row in enumerate(rows, start=1):
        _check_object(row, f"{path}, row {number}", "element")
    return rows


def _line_rows(path: Path, text: str) -> tuple[list[Record], list[int]]:
    """The objects of JSON lines, and the line (1-based) of each; blank lines are passed over."""
    rows: list[Record] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also for a number of 5000 digits
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error})", f"Each line {_OBJECT}"
            ) from None
        _check_object(row, f"{path}, line {number}", "line")
        rows.append(row)
        lines.append(number)
    return rows, lines


def _check_object(row: Any, where: str, what: str) -> None:
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: expected an object, found {type(row).__name__}", f"Each {what} {_OBJECT}"
        )
