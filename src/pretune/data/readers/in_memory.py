"""Tables from a program's memory: lists of rows, frames, Arrow tables, datasets.

What a table is made by is told by the name of its class: nothing is imported that the data do not
come from.

A run is described by its recipe, which is text. There such data are named by what they are,

    from memory, 684 rows, sha256 9f86d081884c7d65...

and whoever trains hands them in beside it (`held_data`). The name is a fingerprint: another run on
the same rows has the same name, and a resumed one wants them handed in again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from pretune.data.records import Record, Records, all_columns
from pretune.errors import DataError, PretuneError, type_name
from pretune.text.terminal import names_in_line


class HasColumns(Protocol):
    """A frame of pandas or polars."""

    @property
    def columns(self) -> Any:
        """The names of its columns."""


class HasColumnNames(Protocol):
    """A table of Arrow, or a dataset of `datasets`."""

    @property
    def column_names(self) -> Any:
        """The names of its columns."""


#: What `from_memory` reads.
Table = (
    Sequence[Mapping[str, Any]]
    | Mapping[str, Sequence[Any]]
    | HasColumns
    | HasColumnNames
    | Records
)

#: How a recipe names such data.
_NAME = re.compile(r"from memory, \d+ rows, sha256 [0-9a-f]{64}")
#: The data that are handed in beside a recipe, by their names.
_held: ContextVar[Mapping[str, Records]] = ContextVar("held", default=MappingProxyType({}))
#: Characters of texts that a stream may have in all: what is read has to fit in memory.
STREAM_CHARS = 4_000_000_000
#: The values that stand for nothing in a frame, besides None and NaN: pandas' NA and NaT.
_NOTHING = ("NAType", "NaTType")
_FORMS = (
    "Give a list of dicts, a dict of columns, a frame of pandas or polars, an Arrow table, or a "
    "datasets.Dataset."
)


@dataclass(frozen=True)
class _Content:
    """What a table holds."""

    rows: list[Record]
    columns: tuple[str, ...]
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)


def is_table(data: object) -> bool:
    """Whether these are data with columns, and not texts or the name of a file."""
    if isinstance(data, Records | Mapping) or _reader(data) is not None:
        return True
    if not isinstance(data, Sequence) or isinstance(data, str | bytes) or not len(data):
        return False
    return isinstance(data[0], Mapping)


def from_memory(data: object, origin: str | None = None) -> Records:
    """Read a table that lies in memory.

    What its maker takes for nothing is None: null in Arrow and polars, NaN, None, NA and NaT in
    pandas. A categorical column holds its categories, and `ClassLabel` columns of `datasets` have
    their names.

    Args:
        data: a list of dicts; a dict of columns; a `DataFrame` of pandas or polars (also a
            `LazyFrame`); an Arrow `Table` or `RecordBatch`; a `datasets.Dataset`; a streaming
            `IterableDataset`, which is read to its end.
        origin: what errors call it; default: what it is, e.g. "the DataFrame".

    Raises:
        DataError: it is none of these, has rows of another form, two columns of one name, or more
            than `STREAM_CHARS` characters in a stream; no part of the data is shown.
    """
    if isinstance(data, Records):
        return data
    place = f"the {type(data).__name__}" if origin is None else origin
    read = _reader(data)
    if read is None and isinstance(data, Mapping):
        read = _of_columns
    elif read is None and isinstance(data, Sequence) and not isinstance(data, str | bytes):
        read = _of_rows
    if read is None:
        raise DataError(f"{type_name(type(data))} is no table with columns", _FORMS)
    content = read(data, place)
    if not content.rows:
        raise DataError(f"{place}: no records in it", "Give at least one row.")
    return Records(content.rows, place, None, content.columns, content.categories)


def plain_items(data: Any) -> list[Any] | None:
    """The items of a column: a pandas or polars series, an Arrow or numpy array; None for others.

    What is missing there is an empty text.
    """
    values = _series_values(data)
    return None if values is None else ["" if v is None else v for v in map(_plain, values)]


# What the makers of tables call them


def _kinds(data: object) -> list[str]:
    """The classes of an object as `package.Name`, its own first."""
    return [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(data).__mro__]


def _reader(data: object) -> Callable[[Any, str], _Content] | None:
    """The function that reads a frame, a table or a dataset; None for anything else."""
    return next((_READERS[kind] for kind in _kinds(data) if kind in _READERS), None)


def _series_values(data: object) -> list[Any] | None:
    """The values of a series or an array; None for anything else."""
    kind = next((kind for kind in _kinds(data) if kind in _SERIES), None)
    return None if kind is None else _SERIES[kind](data)


def _of_rows(data: Sequence[Any], origin: str) -> _Content:
    """Read a list of mappings."""
    for number, row in enumerate(data, start=1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{origin}, row {number}: expected a dict of columns, found {type_name(type(row))}",
                "Each row is a dict, such as {'text': ..., 'label': ...}.",
            )
    rows = [{_name(key): _plain(value) for key, value in row.items()} for row in data]
    return _Content(rows, all_columns(rows))


def _of_columns(data: Mapping[Any, Any], origin: str) -> _Content:
    """Read a mapping from names to columns of one length."""
    columns: dict[str, list[Any]] = {}
    for name, values in data.items():
        own = _series_values(values)
        if own is None and isinstance(values, Sequence) and not isinstance(values, str | bytes):
            own = list(values)
        if own is None:
            raise DataError(
                f"{origin}, column '{name}': expected a list of values, found "
                f"{type_name(type(values))}",
                "A dict holds columns; a single row is a list with one dict.",
            )
        columns[_name(name)] = own
    lengths = {name: len(values) for name, values in columns.items()}
    if len({*lengths.values()}) > 1:
        raise DataError(
            f"{origin}: its columns have different lengths: "
            + names_in_line(f"{name}: {length:,}" for name, length in lengths.items()),
            "Give each column a value for each row.",
        )
    return _joined(columns, origin)


def _of_pandas(data: Any, origin: str) -> _Content:
    # By place: a frame may have two columns of one name, which `_joined` refuses.
    places = range(len(data.columns))
    return _joined([(data.columns[i], _pandas_values(data.iloc[:, i])) for i in places], origin)


def _pandas_values(series: Any) -> list[Any]:
    """The values of a pandas series; None for what pandas takes for missing."""
    missing = series.isna().tolist()
    values = series.astype(object).tolist()
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


_SERIES: dict[str, Callable[[Any], list[Any]]] = {
    "pandas.Series": _pandas_values,
    "pandas.Index": _pandas_values,
    "polars.Series": lambda own: list(own.to_list()),
    "pyarrow.Array": lambda own: list(own.to_pylist()),
    "pyarrow.ChunkedArray": lambda own: list(own.to_pylist()),
    "numpy.ndarray": lambda own: list(own.tolist()),
}


def _of_polars(data: Any, origin: str) -> _Content:
    frame = data.collect() if hasattr(data, "collect") else data
    return _joined([(name, frame[name].to_list()) for name in frame.columns], origin)


def _of_arrow(data: Any, origin: str) -> _Content:
    """Read an Arrow table, chunk by chunk of each column."""
    from pretune.data.readers.parquet import cell_values, stored_categories

    columns = []
    for place, name in enumerate(data.schema.names):
        column = data.column(place)
        chunks = getattr(column, "chunks", [column])  # a RecordBatch has one chunk
        columns.append((name, [value for chunk in chunks for value in cell_values(chunk)]))
    return _joined(columns, origin, stored_categories(data.schema.metadata or {}))


def _of_dataset(data: Any, origin: str) -> _Content:
    """Read a `datasets.Dataset`, whatever it is formatted as."""
    from pretune.data.readers.hub import category_names

    plain = data.with_format(None)
    rows = [{name: _plain(value) for name, value in row.items()} for row in plain.to_list()]
    return _Content(rows, tuple(plain.column_names), category_names(plain.features.to_dict()))


def _of_stream(data: Any, origin: str) -> _Content:
    """Read a streaming dataset to its end, as long as its texts fit in memory."""
    from pretune.data.readers.hub import category_names

    rows: list[Record] = []
    characters = 0
    for row in data.with_format(None):
        rows.append({name: _plain(value) for name, value in row.items()})
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if characters > STREAM_CHARS:
            raise DataError(
                f"{origin}: over {STREAM_CHARS:,} characters in its first {len(rows):,} rows",
                "Take as many as memory holds: data.take(100_000). Or write them to files, and "
                "pre-train on what `pretune prepare` makes of those: it is read from the disk.",
            )
    features = getattr(data, "features", None)
    known = {} if features is None else category_names(features.to_dict())
    return _Content(rows, all_columns(rows), known)


def _splits(data: Any, origin: str) -> _Content:
    raise DataError(
        f"{origin}: several datasets, one for each split: {', '.join(map(str, data))}",
        f"Give one of them: data['{next(iter(data), 'train')}'].",
    )


_READERS: dict[str, Callable[[Any, str], _Content]] = {
    "pandas.DataFrame": _of_pandas,
    "polars.DataFrame": _of_polars,
    "polars.LazyFrame": _of_polars,
    "pyarrow.Table": _of_arrow,
    "pyarrow.RecordBatch": _of_arrow,
    "datasets.Dataset": _of_dataset,
    "datasets.IterableDataset": _of_stream,
    "datasets.DatasetDict": _splits,
    "datasets.IterableDatasetDict": _splits,
}


def _joined(
    columns: Mapping[str, list[Any]] | Iterable[tuple[Any, list[Any]]],
    origin: str,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> _Content:
    """Make rows of columns of one length."""
    pairs = list(columns.items() if isinstance(columns, Mapping) else columns)
    names = [_name(name) for name, _ in pairs]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise DataError(
            f"{origin}: two columns are called '{doubled[0]}'", "Rename or drop one of them."
        )
    values = [[_plain(value) for value in own] for _, own in pairs]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return _Content(rows, tuple(names), categories or {})


def _name(name: object) -> str:
    """The name of a column: pandas numbers those that have none."""
    return name if type(name) is str else str(name)


def _plain(value: Any) -> Any:
    """A cell as Python's own types; None for nothing."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {_name(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    return None if type(value).__name__ in _NOTHING else value


# Data beside a recipe


def memory_name(records: Records) -> str:
    """What a recipe calls data from memory: their number, and a digest of every value.

    The order of the columns, and cells that hold nothing, make no difference.
    """
    digest = hashlib.sha256()
    known = {name: list(names) for name, names in records.categories.items()}
    digest.update(json.dumps(known, sort_keys=True).encode() + b"\n")
    for row in records.rows:
        cells = {name: value for name, value in row.items() if not _is_nothing(value)}
        digest.update(json.dumps(cells, sort_keys=True, default=repr).encode() + b"\n")
    return f"from memory, {len(records)} rows, sha256 {digest.hexdigest()}"


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def is_from_memory(source: object) -> bool:
    """Whether a recipe names data from memory there."""
    return isinstance(source, str) and _NAME.fullmatch(source) is not None


def is_held(source: str) -> bool:
    """Whether the data of that name are handed in."""
    return source in _held.get()


@contextmanager
def held_data(**given: Table | None) -> Iterator[dict[str, str]]:
    """Context in which recipes can name some data from memory.

    Args:
        given: the data by any keys; None: there are none.

    Yields:
        the names of those that are given, by their keys.

    Raises:
        DataError: what is given is no table.
    """
    records = {key: from_memory(data) for key, data in given.items() if data is not None}
    names = {key: memory_name(own) for key, own in records.items()}
    before = _held.get()
    token = _held.set({**before, **{names[key]: own for key, own in records.items()}})
    try:
        yield names
    finally:
        _held.reset(token)


def recalled(source: str) -> Records:
    """The data that a recipe names, if they are handed in.

    Raises:
        DataError: they are not; says how to hand them in.
    """
    if source not in _held.get():
        raise gone(source)
    return _held.get()[source]


def gone(source: str, run: object = "RUN", key: str = "data.train") -> PretuneError:
    """The error for data that are named and not handed in."""
    argument = "data" if key == "data.train" else "validation"
    return DataError(
        f"{key}: {source}: they were in the memory of a program, and are not at hand now",
        f"In Python, hand the same data in again: pretune.resume({str(run)!r}, {argument}=...); or "
        f"save them to a file, and name it: {key}=FILE.",
    )
