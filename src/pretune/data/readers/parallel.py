"""Parallel text: two files, where line n of each is the translation of line n of the other."""

from __future__ import annotations

import os
from pathlib import Path

from pretune.data.records import Records
from pretune.errors import DataError, similar_file
from pretune.text.decode import decode_file, lines_of

#: The columns of the lines of the first and of the second file.
PARALLEL_COLUMNS = ("source", "target")


def parallel_files(source: str | Path) -> tuple[Path, Path] | None:
    """The two files that `FILE,FILE` names; None where it is the name of something else."""
    first, comma, second = str(source).partition(",")
    if not comma or "," in second or os.path.exists(source):
        return None
    return Path(first.strip()), Path(second.strip())


def read_parallel(first: Path, second: Path, encoding: str = "utf-8") -> Records:
    """Read one record a line, with the columns `source` and `target`.

    Lines that are blank in both files are passed over.

    Raises:
        DataError: a file is missing or not in that encoding, the files differ in their number of
            lines, or a line is blank in one of them only; names file and line.
    """
    sides = [_lines(path, encoding) for path in (first, second)]
    counts = [len(lines) for lines in sides]
    if counts[0] != counts[1]:
        raise DataError(
            f"{first} has {counts[0]:,} lines, {second} has {counts[1]:,}",
            "Line n of one must be the translation of line n of the other: look for a line that is "
            "missing, or broken in two.",
        )
    rows, numbers = [], []
    for number, texts in enumerate(zip(*sides, strict=True), start=1):
        blank = [not text.strip() for text in texts]
        if any(blank) and not all(blank):
            empty, full = (first, second) if blank[0] else (second, first)
            raise DataError(
                f"{empty}, line {number}: blank, but {full.name} has a text there",
                "Fill in the translation, or remove the line from both files.",
            )
        if not any(blank):
            rows.append(dict(zip(PARALLEL_COLUMNS, texts, strict=True)))
            numbers.append(number)
    return Records(rows, f"{first},{second}", numbers, PARALLEL_COLUMNS)


def _lines(path: Path, encoding: str) -> list[str]:
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise DataError(
            f"{path}: no such file.{similar_file(path)}",
            "Parallel text is two files with a comma between: train.de,train.en",
        )
    return lines_of(decode_file(path, encoding))
