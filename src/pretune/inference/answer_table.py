"""A table of answers: the rows of a file, with their columns, and what the model made of each.

Answers come batch by batch, and a long file takes hours. Until all are there they lie in
`FILE.part`, one row of JSON a line, on the disk after each batch; the table gets its name in one
step. The same command goes on after a run that was killed.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pretune.checkpoints.atomic_io import atomic_file, check_new_name
from pretune.data.records import Record, all_columns, not_finite
from pretune.errors import RunError, not_writable
from pretune.host import take_lock
from pretune.tasks.base import Prediction

#: The kinds of tables, by the end of their name.
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
#: All possible answers with their scores: in a table only where somebody asks for them.
_ALL_ANSWERS = ("scores", "candidates")
#: Rows that are in memory while a Parquet file is written.
_ROWS = 10_000


def check_table(target: Path, source: Path, *, overwrite: bool) -> None:
    """Check before any work that a table can be written.

    Raises:
        RunError: its name tells no kind, or it is there already, or is what is read.
    """
    if target.suffix not in SUFFIXES:
        raise RunError(
            f"{target}: the name tells no kind of table", f"Let it end in {', '.join(SUFFIXES)}."
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise RunError(f"{target}: is the file that is read", "Write to another file.")
    if target.exists() and not overwrite:
        raise RunError(f"{target}: exists already", "Choose another name, or add --overwrite.")
    check_new_name(target)
    if not target.parent.is_dir():
        raise RunError(f"{target}: there is no folder {target.parent}", "Make it first.")


def answered_row(
    row: Mapping[str, Any], renamed: Mapping[str, str], answer: Prediction, *, everything: bool
) -> Record:
    """Put an answer beside the row it answers.

    An answer's column that the row has too, such as `label`, becomes `predicted_label`.

    Args:
        row: under the task's names of columns.
        renamed: these -> the names in the file.
        answer: of the model.
        everything: whether to keep the scores of all possible answers.
    """
    kept = {renamed.get(name, name): value for name, value in row.items()}
    told = {
        name: value
        for name, value in answer.to_dict().items()
        if everything or name not in _ALL_ANSWERS
    }
    for name, value in told.items():
        while name in kept:
            name = f"predicted_{name}"
        kept[name] = value
    return kept


def stamps(source: str | Path) -> list[list[Any]]:
    """Tell a file, or what is in a folder, from a later version: names, sizes and dates.

    Empty for anything that is neither, such as the name of a model.
    """
    path = Path(source)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    known = [(os.path.realpath(file), file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in known]


class AnswerTable:
    """Collects rows with their answers, and writes them as a table.

    Args:
        target: the file; its end tells the kind, one of `SUFFIXES`.
        identity: what the answers depend on; another run that had the same goes on here.

    Raises:
        RunError: the rows that are there are of something else, another process writes them, or
            they cannot be written.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.target = target
        self.part = target.with_name(f"{target.name}.part")
        #: How many rows are there.
        self.done = 0
        try:
            self._file: IO[bytes] = self.part.open("a+b")
        except OSError as error:
            raise not_writable(target, "file", error) from None
        if not take_lock(self._file):
            raise RunError(f"{self.part}: another process writes it", "Wait until it is done.")
        self._go_on(json.dumps({"answers of": identity}).encode() + b"\n")

    def _go_on(self, head: bytes) -> None:
        """Count the whole rows that are there, and cut off what follows the last of them."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):  # new, or killed at its first line
            self._file.truncate(0)
            self._file.write(head)
            self._sync()
            return
        if first != head:
            raise RunError(
                f"{self.part}: has answers of another file, model or option",
                "Remove it, or choose another name for the table.",
            )
        end = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end, self.done = end + len(line), self.done + 1
        self._file.truncate(end)

    def keep_groups(self, size: int) -> int:
        """Cut off an incomplete group of rows, where each input has several; count the groups."""
        groups, extra = divmod(self.done, size)
        if extra:
            self._file.seek(0)
            for _ in range(1 + self.done - extra):
                self._file.readline()
            self._file.truncate(self._file.tell())
            self.done -= extra
        return groups

    def add(self, rows: Iterable[Record]) -> None:
        """Append rows, and bring them to the disk."""
        for row in rows:
            self._file.write(json.dumps(_json_ready(row), default=str).encode() + b"\n")
            self.done += 1
        self._sync()

    def _sync(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise not_writable(self.target, "file", error) from None

    def close(self) -> None:
        """Leave what is there for another run to go on with."""
        self._file.close()

    def finish(self) -> None:
        """Write the table under its name, and remove the rows that were collected."""
        write = {".jsonl": self._lines, ".parquet": self._parquet}.get(
            self.target.suffix, self._separated
        )
        try:
            with atomic_file(self.target) as aside:
                write(aside)
        except OSError as error:
            raise not_writable(self.target, "file", error) from None
        self.part.unlink()
        self.close()

    def _rows(self) -> Iterator[Record]:
        with self.part.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def _lines(self, aside: Path) -> None:
        with aside.open("w", encoding="utf-8") as file:
            for row in self._rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _separated(self, aside: Path) -> None:
        columns = all_columns(self._rows())
        with aside.open("w", encoding="utf-8", newline="") as file:
            separator = "\t" if self.target.suffix == ".tsv" else ","
            writer = csv.writer(file, delimiter=separator, lineterminator="\n")
            writer.writerow(columns)
            for row in self._rows():
                writer.writerow([_cell(row.get(name)) for name in columns])

    def _parquet(self, aside: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        # First the type of each column, over all rows; then the rows, some at a time.
        types: dict[str, Any] = {}
        for rows in self._some_rows():
            for name in all_columns(rows):
                given = _arrow_type([row.get(name) for row in rows], name)
                types[name] = _common_type(types[name], given) if name in types else given
        schema = pyarrow.schema(types.items())
        with parquet.ParquetWriter(aside, schema) as writer:
            for rows in self._some_rows():
                columns = [
                    _arrow_array([r.get(n) for r in rows], kind) for n, kind in types.items()
                ]
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))

    def _some_rows(self) -> Iterator[list[Record]]:
        rows = self._rows()
        while some := list(islice(rows, _ROWS)):
            yield some


def _json_ready(value: Any) -> Any:
    """A row whose NaN and infinite numbers, which JSON does not have, are null."""
    if isinstance(value, Mapping):
        return {str(name): _json_ready(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(inner) for inner in value]
    return None if not_finite(value) else value


def _arrow_type(values: Sequence[Any], name: str) -> Any:
    """The type of a column of Parquet; text for values of several types."""
    import pyarrow

    # As text: in Parquet every row of a mapping has all its keys.
    if name in _ALL_ANSWERS:
        return pyarrow.string()
    try:
        return pyarrow.array(values).type
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.string()


def _common_type(first: Any, second: Any) -> Any:
    """The type of values of two types; text where they have nothing in common."""
    import pyarrow

    schemas = [pyarrow.schema([("", kind)]) for kind in (first, second)]
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.string()


def _arrow_array(values: Sequence[Any], kind: Any) -> Any:
    """A column of Parquet, in which texts stand for values of any type."""
    import pyarrow

    if pyarrow.types.is_string(kind):
        values = [None if value is None else _cell(value) for value in values]
    return pyarrow.array(values, kind)


def _cell(value: Any) -> str:
    """A value as text; lists and mappings as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
