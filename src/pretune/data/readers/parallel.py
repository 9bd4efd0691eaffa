"""Parallel text: two files, in which line n of one is the translation of line n of the other."""

from __future__ import annotations

import os
from pathlib import Path

from pretune.data.records import Records, decode
from pretune.errors import DataError, did_you_mean
from pretune.text.decode import lines_of

#: What the lines of the first and of the second file are called.
COLUMNS = ("source", "target")


def parallel_files(source: str | Path) -> tuple[Path, Path] | None:
    """The two files that `FILE,FILE` names; None where it is the name of something else."""
    first, comma, second = str(source).partition(",")
    if not comma or "," in second or os.path.exists(source):
        return None
    return Path(first.strip()), Path(second.strip())


def read_parallel(first: Path, second: Path, encoding: str = "utf-8") -> Records:
    """One record a line, with the columns `source` and `target`; lines blank in both are none.

    Raises:
        DataError: a file is missing or not in that encoding, they have not as many lines as each
            other, or a line is blank in one of them; names file and line.
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
            rows.append(dict(zip(COLUMNS, texts, strict=True)))
            numbers.append(number)
    return Records(rows, f"{first},{second}", numbers, COLUMNS)


def _lines(path: Path, encoding: str) -> list[str]:
    if not os.path.isfile(path):  # Path's raises where a name is too long
        siblings = [p.name for p in path.parent.glob("*")] if os.path.isdir(path.parent) else []
        near = f" {did_you_mean(path.name, siblings)}" if 0 < len(siblings) < 50 else ""
        raise DataError(
            f"{path}: no such file.{near}",
            "Parallel text is two files with a comma between: train.de,train.en",
        )
    return lines_of(decode(path, encoding))
