"""Parquet files. Their library is imported only when one is read.

A small file may stand for a huge table: a text that many rows share is stored once, and runs of
equal values take no room. Texts that a file shares are shared in memory too, and a table far larger
than its file is refused before it is read.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pretune.data.readers.hub import category_names
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.storage.object_store import is_url, opened
from pretune.text.byte_stream import FREE_BYTES, MAX_RATIO, spooled
from pretune.text.file_kinds import HEAD_BYTES, kind_by_content, page_kind

if TYPE_CHECKING:
    from pyarrow import Array as ArrowArray
    from pyarrow.parquet import ParquetFile

#: Bytes that a cell takes at least, in Arrow's memory.
_CELL_BYTES = 8
#: Rows of lists or objects that are read at a time.
_NESTED_ROWS = 64


@contextmanager
def opened_parquet(path: str | Path) -> Iterator[ParquetFile]:
    """Open a Parquet file, whose columns of texts then come as dictionaries.

    Raises:
        DataError: not a Parquet file, or one that decodes to far more than its size.
    """
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    # An object in storage is read where it lies: of a corpus each only once.
    place = str(path) if is_url(path) else spooled(path)
    try:
        with _bytes(place) as handle:
            head = handle.read(HEAD_BYTES)
            size = handle.seek(0, os.SEEK_END)
        if not head.startswith(b"PAR1"):
            kind = kind_by_content(head) or page_kind(head)
            reason = kind.what if kind else "it does not begin as one" if head else "it is empty"
            raise DataError(
                f"{path}: not a Parquet file that can be read ({reason})",
                kind.way_out.replace("FILE", str(path)) if kind else "Write it again.",
            )
        with _bytes(place) as handle, parquet.ParquetFile(handle) as file:
            _check_size(file, path, size)
            texts = _text_columns(file)
        with _bytes(place) as handle, parquet.ParquetFile(handle, read_dictionary=texts) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read ({error})", "Write it again."
        ) from None


def _bytes(place: str) -> AbstractContextManager[BinaryIO]:
    return opened(place) if is_url(place) else open(place, "rb")


def _check_size(file: ParquetFile, path: str | Path, size: int) -> None:
    """Refuse a file whose own account of its content is far larger than the file."""
    metadata = file.metadata
    stored = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    row = sum(max(column.length, _CELL_BYTES) for column in _leaves(file))
    if max(stored, metadata.num_rows * row) > max(FREE_BYTES, MAX_RATIO * size):
        raise _too_large(path, f"{metadata.num_rows:,} rows in {size:,} bytes")


def _too_large(path: str | Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what}: unpacks to over {MAX_RATIO} times its size",
        "That is no usual table. If it is right, write it as several files, or as .jsonl.",
    )


def _leaves(file: ParquetFile) -> list[Any]:
    """The columns of values; a column of lists or objects has its own below it."""
    return [file.schema.column(i) for i in range(len(file.schema))]


def _text_columns(file: ParquetFile) -> list[str]:
    """The names of the columns of texts. Arrow cannot read those inside lists as dictionaries."""
    return [
        column.path
        for column in _leaves(file)
        if column.physical_type == "BYTE_ARRAY"
        and column.logical_type.type in ("STRING", "NONE")
        and column.path in file.schema_arrow.names
    ]


def plain_values(column: ArrowArray) -> list[Any]:
    """The values of a column, as Arrow makes them."""
    return list(column.to_pylist())


def cell_values(
    column: ArrowArray, values_of: Callable[[ArrowArray], list[Any]] = plain_values
) -> list[Any]:
    """The values of a column, where rows that share a text of a dictionary share one object.

    `values_of` makes Python's values of an array without a dictionary.
    """
    import pyarrow as arrow
    import pyarrow.compute as compute

    if arrow.types.is_dictionary(column.type):
        indices = column.indices.to_pylist()
        used = sorted({i for i in indices if i is not None})
        values = dict(zip(used, values_of(column.dictionary.take(arrow.array(used))), strict=True))
        return [None if i is None else values[i] for i in indices]
    if arrow.types.is_list(column.type) or arrow.types.is_large_list(column.type):
        items = iter(cell_values(column.flatten(), values_of))
        lengths = compute.list_value_length(column).to_pylist()
        return [None if n is None else [next(items) for _ in range(n)] for n in lengths]
    return values_of(column)


def stored_categories(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """`category_names` from the metadata of a Parquet file that `datasets` has written."""
    try:
        return category_names(json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


def read_parquet(path: Path) -> Records:
    """Read all columns of a Parquet file.

    Raises:
        DataError: not a Parquet file, one that decodes to far more than its size, or a value that
            Python cannot hold; names the column.
    """
    import pyarrow as arrow

    with opened_parquet(path) as file:
        schema = file.schema_arrow
        names = tuple(schema.names)
        columns = []
        for name in names:
            nested = arrow.types.is_nested(schema.field(name).type)
            arrays = _nested_arrays if nested else _flat_arrays
            columns.append([_readable(array, path, name) for array in arrays(file, path, name)])
    values = [itertools.chain.from_iterable(column) for column in columns]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return Records(rows, str(path), None, names, stored_categories(schema.metadata or {}))


def parquet_parts(path: Path, size: int) -> Iterator[Records]:
    """Read all columns of a Parquet file, at most `size` rows at a time; see `read_parquet`."""
    with opened_parquet(path) as file:
        schema = file.schema_arrow
        names, categories = tuple(schema.names), stored_categories(schema.metadata or {})
        before = 0
        for batch in file.iter_batches(size):
            values = [
                _readable(batch.column(place), path, name) for place, name in enumerate(names)
            ]
            rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
            numbers = range(before + 1, before + len(rows) + 1)
            before += len(rows)
            whole = file.metadata.num_rows
            yield Records(rows, str(path), None, names, categories, numbers=numbers, whole=whole)


def _flat_arrays(file: ParquetFile, path: Path, name: str) -> Iterator[ArrowArray]:
    """A column as a whole, in the pieces that share a dictionary."""
    yield from file.read([name]).column(0).chunks


def _nested_arrays(file: ParquetFile, path: Path, name: str) -> Iterator[ArrowArray]:
    """A column of lists or objects, some rows at a time, as its texts are not shared in memory."""
    bound = max(FREE_BYTES, MAX_RATIO * os.path.getsize(spooled(path)))
    taken = 0
    for batch in file.iter_batches(_NESTED_ROWS, columns=[name]):
        taken += batch.nbytes
        if taken > bound:
            raise _too_large(path, f"column '{name}'")
        yield batch.column(0)


def _readable(array: ArrowArray, path: Path, name: str) -> list[Any]:
    try:
        return cell_values(array)
    except (ValueError, OverflowError) as error:  # bytes that are not UTF-8, dates out of range
        raise DataError(
            f"{path}, column '{name}': a value that cannot be read ({error})",
            "Repair it, or write the file without that column.",
        ) from None
