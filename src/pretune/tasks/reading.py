"""Reading data for a task: its columns under the names the task knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pretune.data.readers.files import read
from pretune.data.records import MAX_CHARS, Records
from pretune.tasks.base import AdaptsRecords, Preprocessor, ReadsStream, ReadsWindows

#: The longest text, in characters, where texts are read as several sequences: any book.
BOOK_CHARS = 100_000_000


def read_for(
    task: Preprocessor,
    source: str | Path,
    *,
    columns: Mapping[str, str],
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int | None = None,
    with_targets: bool = True,
) -> Records:
    """Read data for a task.

    Blank lines separate the documents of a `.txt` file, except for a task that reads one running
    text, such as a novel: there the whole file is one record.

    Args:
        task: that will use the records.
        source: a file, a folder or a Hub dataset.
        columns: the task's column names -> the data's.
        encoding: of text files.
        quoting: of CSV and TSV files.
        max_chars: longer texts are refused as mistakes; None: `longest_text(task)`.
        with_targets: whether answers are needed.

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    limit = longest_text(task) if max_chars is None else max_chars
    records = read(
        source,
        encoding=encoding,
        quoting=quoting,
        max_chars=limit,
        text_unit="file" if isinstance(task, ReadsStream) else "blank-line",
    )
    return adapt_records(task, records, columns, with_targets=with_targets)


def adapt_records(
    task: Preprocessor, records: Records, columns: Mapping[str, str], *, with_targets: bool = True
) -> Records:
    """Bring records into the form a task reads, with its own column names.

    Args:
        task: that will use the records.
        records: as they were read.
        columns: the task's column names -> the data's.
        with_targets: whether answers are needed.

    Raises:
        DataError: a column that the task needs is missing.
    """
    needed = [*task.inputs, *(task.targets if with_targets else ())]
    if isinstance(task, AdaptsRecords):
        records = task.adapted(records, columns, with_targets)
    return records.mapped(columns, needed)


def longest_text(task: Preprocessor) -> int:
    """The length in characters from which a text is taken for a mistake.

    It is generous for tasks that read a long text as several sequences and cut nothing off.
    """
    return BOOK_CHARS if isinstance(task, ReadsWindows) else MAX_CHARS
