"""Vectors of a whole file, written as they come: a `.npy` array, or Parquet beside the columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pretune.checkpoints.atomic_io import atomic_file
from pretune.data.columns import as_text, label_column, text_columns
from pretune.data.readers.files import TABLE_SUFFIXES, read
from pretune.data.records import Records
from pretune.errors import DataError, RunError
from pretune.inference.embed import Embedder
from pretune.inference.predict import file_lines

#: The column of the vectors in a Parquet file.
COLUMN = "embedding"
FORMATS = (".npy", ".parquet")


def read_texts(
    source: str, *, column: str | None = None, encoding: str = "utf-8", quoting: str = "auto"
) -> tuple[Records, list[str], int]:
    """The records of a file or of a Hub dataset, the text of each, and how many lines had none.

    A `.txt` file has one text a line; blank lines are left out, and counted: behind them the row of
    a vector is no longer the number of its line.

    Args:
        source: as for `pretune.data.records`.
        column: which one has the texts; default: the one that looks like it.
        encoding: of a text file.
        quoting: of a CSV or TSV file.

    Raises:
        DataError: it cannot be read, or has no such column, or several that may be meant, or a
            record without text.
    """
    path, blank = Path(source), 0
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        every = file_lines(path, encoding)
        lines = [(number, line) for number, line in every if line.strip()]
        blank = len(every) - len(lines)
        rows = [{"text": line} for _, line in lines]
        records = Records(rows, source, [number for number, _ in lines], ("text",))
    else:
        records = read(source, encoding=encoding, quoting=quoting)
    found = text_columns(records, [column] if column else None, label_column(records))
    if len(found) > 1:
        raise DataError(
            f"{records.origin}: several columns hold text: {', '.join(found)}",
            f"Say which one: --column {found[0]}",
        )
    texts = []
    for row, record in enumerate(records.rows):
        text = as_text(record.get(found[0]))
        if text is None or not text.strip():
            raise DataError(
                f"{records.where(row, found[0])}: no text there",
                "Give every record a text, or remove the record.",
            )
        texts.append(text)
    return records, texts, blank


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """See that vectors can be written there, before any are made.

    Raises:
        RunError: another kind of file, no such folder, or something is there already.
    """
    if path.suffix.lower() not in FORMATS:
        raise RunError(
            f"--output {path}: cannot tell the format from the name",
            f"Name it with {' or '.join(FORMATS)}.",
        )
    if not path.resolve().parent.is_dir():
        raise RunError(f"--output {path}: no such folder", "Make it first.")
    if path.is_dir():
        raise RunError(f"--output {path}: is a folder", "Give the name of a file.")
    if path.exists() and not overwrite:
        raise RunError(f"{path}: is there already", "Choose another --output, or --overwrite it.")


def write_vectors(
    embedder: Embedder,
    records: Records,
    texts: list[str],
    path: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Embed texts and write the vectors; no more than a chunk of them is held.

    Args:
        embedder: makes them.
        records: where the texts come from; their columns go into a Parquet file too.
        texts: one for each record.
        path: `.npy`, float32 `[N, hidden]`, or `.parquet`. It appears when it is whole.
        progress: called with the number of texts done.

    Raises:
        DataError: columns that Parquet cannot hold, or one that is called as ours.
        RunError: the file cannot be written.
    """
    write = _write_npy if path.suffix.lower() == ".npy" else _write_parquet
    try:
        with atomic_file(path) as aside:
            write(embedder, records, texts, aside, progress)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error})", "Choose another --output."
        ) from None


Progress = Callable[[int], None] | None


def _write_npy(
    embedder: Embedder, records: Records, texts: list[str], path: Path, progress: Progress
) -> None:
    with path.open("wb") as handle:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
            "fortran_order": False,
            "shape": (len(texts), embedder.size),
        }
        np.lib.format.write_array_header_1_0(handle, header)
        for _, vectors in embedder.chunks(texts, where=records.where, progress=progress):
            handle.write(vectors.tobytes())


def _write_parquet(
    embedder: Embedder, records: Records, texts: list[str], path: Path, progress: Progress
) -> None:
    import pyarrow
    import pyarrow.parquet

    if COLUMN in records.columns:
        raise DataError(
            f"{records.origin}: has a column '{COLUMN}' already", "Rename it, or write a .npy."
        )
    try:
        columns = {
            name: pyarrow.array([row.get(name) for row in records.rows]) for name in records.columns
        }
        table = pyarrow.table(columns)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{records.origin}: has a column that Parquet cannot hold ({error})",
            "Give its values one type, or write a .npy.",
        ) from None
    kind = pyarrow.list_(pyarrow.float32(), embedder.size)
    schema = table.schema.append(pyarrow.field(COLUMN, kind))
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start, vectors in embedder.chunks(texts, where=records.where, progress=progress):
            flat = pyarrow.array(vectors.reshape(-1))
            column = pyarrow.FixedSizeListArray.from_arrays(flat, embedder.size)
            rows = table.slice(start, len(vectors)).append_column(schema.field(COLUMN), column)
            writer.write_table(rows)
