"""Records from files and from the Hugging Face Hub; every error names the file, line and column."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretune.data.readers.conll import CONLL_SUFFIXES, conll_rows, looks_like_conll
from pretune.data.readers.delimited import table_rows
from pretune.data.readers.hub import HUB_DATASET, category_names, hub_table, stored_categories
from pretune.data.readers.squad import squad_rows
from pretune.errors import DataError, describe_value, did_you_mean
from pretune.text.decode import SURROGATE, TextDecoder, encoding_hint

Record = dict[str, Any]

#: A text longer than this is an error: it is nearly always a mistake (a file in place of a text, a
#: lost line break), and would be cut to a few hundred tokens anyway. `data.max_chars` changes it.
MAX_CHARS = 100_000
#: How quotes in a CSV or TSV file may be read.
QUOTINGS = ("auto", "standard", "none")


def not_finite(value: object) -> bool:
    """Whether this is NaN or infinite: what pandas, and so Parquet and JSON, has for nothing."""
    return isinstance(value, float) and not math.isfinite(value)


def is_missing(value: object) -> bool:
    """Whether this is nothing: null, an empty text or no finite number."""
    return value is None or (isinstance(value, str) and not value) or not_finite(value)


class ColumnNames(dict[str, str]):
    """Our names of columns -> the data's, for `Records.mapped`.

    Args:
        usual: those of a recipe. They may be for other data: data without such a column may have
            it under our own name.
        given: those that a person gave for these very data, which must have all of them.
        known: the columns of the task.

    Attributes:
        given: as above.

    Raises:
        DataError: one is given for a column that the task does not know.
    """

    def __init__(
        self, usual: Mapping[str, str], given: Mapping[str, str], known: Iterable[str]
    ) -> None:
        super().__init__({**usual, **given})
        self.given = dict(given)
        known = list(known)
        for ours, theirs in given.items():
            if ours not in known:
                raise DataError(
                    f"data.columns.{ours}={theirs}: the model's task has no column '{ours}'",
                    did_you_mean(ours, known),
                )


@dataclass(frozen=True)
class Records:
    """Rows with a memory of where they came from.

    Attributes:
        rows: one dict a record.
        origin: the file or the Hub dataset.
        lines: for each row its line in the file (1-based), or None where rows have no lines.
        columns: the names of all columns.
        categories: for columns that the source itself declares as categories, their names in order.
        max_chars: the longest text that is not taken for a mistake.
        numbers: for each row its number in the source (1-based), where only some were taken.
        line_items: whether the items of a row's lists stand on a line each, from its line on.
        renamed: our names of columns -> what the source calls them, where they were renamed.
    """

    rows: Sequence[Record]
    origin: str
    lines: Sequence[int] | None = None
    columns: tuple[str, ...] = ()
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_chars: int = MAX_CHARS
    numbers: Sequence[int] | None = None
    line_items: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int, column: str | None = None, item: int | None = None) -> str:
        """A place to name in an error: `train.tsv, line 7, column 'label'`.

        Args:
            row: which record (0-based).
            column: the column in it.
            item: which item (0-based) of the list there.
        """
        of_item = "" if item is None or self.line_items else f", item {item + 1}"
        if self.lines is not None:
            place = f"line {self.lines[row] + (item or 0 if self.line_items else 0)}"
        else:
            place = f"row {row + 1 if self.numbers is None else self.numbers[row]}"
        return f"{self.origin}, {place}" + (f", column '{column}'" if column else "") + of_item

    def take(self, which: Sequence[int]) -> Records:
        """The records at these places (0-based), in this order."""
        rows = [self.rows[i] for i in which]
        if self.lines is not None:
            return replace(self, rows=rows, lines=[self.lines[i] for i in which])
        numbers = range(1, len(self) + 1) if self.numbers is None else self.numbers
        return replace(self, rows=rows, numbers=[numbers[i] for i in which])

    def head(self, count: int | None) -> Records:
        """The first `count` records, or all."""
        if count is None or count >= len(self.rows):
            return self
        return self.take(range(count))

    def mapped(self, mapping: Mapping[str, str], needed: Sequence[str]) -> Records:
        """Rename columns to the names a task knows them by.

        Args:
            mapping: task's name -> this source's name; columns not named keep theirs. Those of
                a `ColumnNames` that are `given` must be there.
            needed: the names that must be there afterwards.

        Raises:
            DataError: one is not; names the columns there are and how to map one.
        """
        given = mapping.given if isinstance(mapping, ColumnNames) else {}
        for name in dict.fromkeys([*needed, *given]):
            wanted = mapping.get(name, name)
            # A mapping may be for the data that a recipe names, and these have our own names.
            taken = {wanted} if name in given else {wanted, name}
            if not taken & {*self.columns} and self.renamed.get(name) != wanted:
                raise DataError(
                    f"{self.origin}: no column '{wanted}'"
                    + (f" (for '{name}')" if wanted != name else "")
                    + f"; it has {', '.join(repr(c) for c in self.columns)}",
                    f"{did_you_mean(wanted, self.columns)} "
                    f"Say which one it is with data.columns.{name}=COLUMN",
                )
        renames = {ours: theirs for ours, theirs in mapping.items() if theirs in self.columns}
        if all(theirs == ours for ours, theirs in renames.items()):
            return self
        # What is renamed leaves its old name; what bears a name that is given anew makes way.
        gone = {*renames.values(), *renames}

        def rename(values: Mapping[str, Any]) -> dict[str, Any]:
            kept = {name: value for name, value in values.items() if name not in gone}
            given = {ours: values[theirs] for ours, theirs in renames.items() if theirs in values}
            return kept | given

        return replace(
            self,
            rows=[rename(row) for row in self.rows],
            columns=tuple(rename(dict.fromkeys(self.columns))),
            categories=rename(self.categories),
            renamed={**self.renamed, **renames},
        )

    def text(self, row: int, column: str) -> str:
        """The text in a column; numbers are written out.

        Raises:
            DataError: it is missing, null, NaN, a list or an object, over `max_chars` characters,
                or no valid Unicode.
        """
        value = self.rows[row].get(column)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not_finite(value):
            raise DataError(
                f"{self.where(row, column)}: expected a text, found {describe_value(value)}",
                "Give every record a text there, or remove the record.",
            )
        return self.checked(str(value), row, column)

    def items(self, value: Any, row: int, column: str, what: str, hint: str) -> list[Any]:
        """A value of that column that has to be a list, and not an empty one.

        Raises:
            DataError: it is not; says that a list of `what` was expected, and the hint.
        """
        if isinstance(value, list | tuple) and value:
            return list(value)
        given = "an empty list" if isinstance(value, list | tuple) else describe_value(value)
        raise DataError(
            f"{self.where(row, column)}: expected a list of {what}, found {given}", hint
        )

    def checked(self, text: str, row: int, column: str, item: int | None = None) -> str:
        """A text of that column, or of an item of the list there, if it can be used.

        Raises:
            DataError: over `max_chars` characters, or no valid Unicode.
        """
        where = self.where(row, column, item)
        if len(text) > self.max_chars:
            raise DataError(
                f"{where}: a text of {len(text):,} characters (the limit is {self.max_chars:,})",
                "Split the text, or allow it with data.max_chars=N if that is what you mean.",
            )
        if (half := SURROGATE.search(text)) is not None:
            raise DataError(
                f"{where}: half a character, \\u{ord(half[0]):04x}, "
                f"at character {half.start() + 1}",
                "A text was cut inside a surrogate pair (an emoji, often): repair or remove it.",
            )
        return text


def read(
    source: str | Path,
    *,
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int = MAX_CHARS,
) -> Records:
    """Read records.

    Args:
        source: a local `.jsonl`/`.ndjson`/`.json` (SQuAD's nested layout too), `.csv`, `.tsv` or
            `.parquet` file; CoNLL columns (`.conll`, `.bio`, or a `.txt` file that has them);
            another `.txt` file (one text) or a folder of such; two files of parallel text,
            `train.de,train.en`, whose lines are `source` and `target`; or a dataset on the Hugging
            Face Hub as `owner/name[:config]:split`, e.g. `nyu-mll/glue:mrpc:train`.
        encoding: of a text file, e.g. `gb18030`.
        quoting: of a CSV or TSV file: `standard` (fields may be in double quotes), `none` (a quote
            is a character like any other), or `auto`: standard for CSV, none for TSV, as the public
            datasets do it.
        max_chars: the longest text that is not taken for a mistake (see `Records.text`).

    Raises:
        DataError: missing, empty, broken or unknown, with the line where there is one; no such
            encoding or quoting.
    """
    from pretune.data.readers.parallel import (
        parallel_files,
        read_parallel,
    )  # which know records, too
    from pretune.data.readers.plain_text import is_plain, read_plain

    if quoting not in QUOTINGS:
        raise DataError(f"no quoting is called '{quoting}'", did_you_mean(quoting, QUOTINGS))
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    hub = HUB_DATASET.fullmatch(str(source))
    if (both := parallel_files(source)) is not None:
        records = read_parallel(*both, encoding)
    elif path.suffix.lower() == ".txt" and os.path.isfile(path) and looks_like_conll(path):
        records = _read_conll(path, encoding, quoting)
    elif os.path.exists(path) and is_plain(path):
        records = read_plain(path, encoding)
    elif os.path.isfile(path):  # not path.is_file(), which raises where a name is too long
        if reader is None:
            raise DataError(
                f"{path}: cannot tell the format from the name",
                f"Name it with one of {', '.join(_READERS)}, .txt.",
            )
        records = reader(path, encoding, quoting)
    elif hub and reader is None and not os.path.exists(path):
        records = _read_hub(str(source))
    else:
        raise DataError(
            _missing(path), "Check the path; relative paths start at the current folder."
        )
    if not records.rows:
        raise DataError(
            f"{records.origin}: no records in it", "Give a file with at least one record."
        )
    return replace(records, max_chars=max_chars)


def _missing(path: Path) -> str:
    if os.path.isdir(path):
        return f"{path}: is a folder, expected a file"
    siblings = [p.name for p in path.parent.glob("*")] if os.path.isdir(path.parent) else []
    suggestion = f" {did_you_mean(path.name, siblings)}" if siblings and len(siblings) < 50 else ""
    return f"{path}: no such file.{suggestion}"


def decode(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, without a byte order mark before it.

    Raises:
        DataError: not to be read, or not in that encoding; names the line, and the encoding it
            looks like.
    """
    decoder = TextDecoder(encoding)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})", "Check its owner and mode."
        ) from None
    try:
        return decoder.decode(raw, final=True)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = "".join(f" (byte 0x{b:02x})" for b in error.object[error.start :][:1])
        raise DataError(
            f"{path}, line {line}: not valid {encoding.upper()}{byte}",
            encoding_hint(raw, "data.encoding="),
        ) from None
    except UnicodeError as error:  # of some of Python's own encodings, which know no place
        raise DataError(
            f"{path}: not valid {encoding.upper()} ({error})",
            encoding_hint(raw, "data.encoding="),
        ) from None


def _read_jsonl(path: Path, encoding: str, quoting: str) -> Records:
    text = decode(path, encoding)
    if text.lstrip().startswith("["):
        return _read_json_array(path, text)
    if path.suffix.lower() == ".json" and (nested := squad_rows(path, text)) is not None:
        return Records(nested, str(path), None, _all_columns(nested))
    rows: list[Record] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number may have too many digits
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error})", f"Each line {_OBJECT}"
            ) from None
        _check_object(row, f"{path}, line {number}", "line")
        rows.append(row)
        lines.append(number)
    return Records(rows, str(path), lines, _all_columns(rows))


def _read_json_array(path: Path, text: str) -> Records:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})", "Repair it at that place.") from None
    for number, row in enumerate(rows, start=1):
        _check_object(row, f"{path}, row {number}", "element")
    return Records(rows, str(path), None, _all_columns(rows))


_OBJECT = 'is one object, such as {"text": "...", "label": "..."}.'


def _check_object(row: Any, where: str, what: str) -> None:
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: expected an object, found {type(row).__name__}", f"Each {what} {_OBJECT}"
        )


def _all_columns(rows: Sequence[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows for key in row))


def _read_csv(path: Path, encoding: str, quoting: str) -> Records:
    return _read_table(path, encoding, ",", quoted=quoting != "none")


def _read_tsv(path: Path, encoding: str, quoting: str) -> Records:
    return _read_table(path, encoding, "\t", quoted=quoting == "standard")


def _read_table(path: Path, encoding: str, delimiter: str, *, quoted: bool) -> Records:
    header, rows, lines = table_rows(path, decode(path, encoding), delimiter, quoted=quoted)
    return Records(rows, str(path), lines, header)


def _read_parquet(path: Path, encoding: str, quoting: str) -> Records:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read ({error})", "Write it again."
        ) from None
    categories = stored_categories(table.schema.metadata or {})
    values = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            values.append(column.to_pylist())
        except (ValueError, OverflowError) as error:  # bad UTF-8, a date that Python has not
            raise DataError(
                f"{path}, column '{name}': a value that cannot be read ({error})",
                "Repair it, or write the file without that column.",
            ) from None
    names = tuple(table.column_names)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return Records(rows, str(path), None, names, categories)


def _read_conll(path: Path, encoding: str, quoting: str) -> Records:
    rows, lines = conll_rows(path, decode(path, encoding))
    return Records(rows, str(path), lines, tuple(rows[0]) if rows else (), line_items=True)


_READERS: dict[str, Callable[[Path, str, str], Records]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    **dict.fromkeys(CONLL_SUFFIXES, _read_conll),
}

#: Names of files that `read` knows how to read end like this.
TABLE_SUFFIXES = tuple(_READERS)


def _read_hub(origin: str) -> Records:
    table = hub_table(origin)
    categories = category_names(table.features.to_dict())
    return Records(table.to_list(), origin, None, tuple(table.column_names), categories)
