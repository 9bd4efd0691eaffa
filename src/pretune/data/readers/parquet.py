"""Parquet files. pyarrow is imported only when one is read."""

from __future__ import annotations

from pathlib import Path

from pretune.data.readers.hub import stored_categories
from pretune.data.records import Records
from pretune.errors import DataError


def read_parquet(path: Path) -> Records:
    """Read all columns of a Parquet file.

    Raises:
        DataError: not a Parquet file, or a value that Python cannot hold; names the column.
    """
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read ({error})", "Write it again."
        ) from None
    values = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            values.append(column.to_pylist())
        except (ValueError, OverflowError) as error:  # bytes that are not UTF-8, dates out of range
            raise DataError(
                f"{path}, column '{name}': a value that cannot be read ({error})",
                "Repair it, or write the file without that column.",
            ) from None
    names = tuple(table.column_names)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return Records(rows, str(path), None, names, stored_categories(table.schema.metadata or {}))
