"""Plain text as records: `.txt` files, all `.txt` files of a folder, or parallel text.

Parallel text is two files, where line n of each is the translation of line n of the other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pretune.data.records import Records
from pretune.errors import DataError, similar_file
from pretune.text.byte_stream import is_file
from pretune.text.decode import decode_file, lines_of
from pretune.text.file_kinds import suffix_of

#: What one record of a text file is: a document between blank lines, or the whole file.
TextUnit = Literal["blank-line", "file"]

#: The units of `pretune prepare` and of `read`, as both tell people what they did.
TEXT_UNITS = {
    "blank-line": "blank lines separate the documents of a text file",
    "line": "each line of a text file is a document",
    "file": "each text file is one document",
}


def is_plain(path: Path) -> bool:
    """Whether a path is plain text: a `.txt` or `.txt.gz` file, or a folder with such files."""
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        return bool(_text_files(path))
    return suffix_of(path) == ".txt" and is_file(path)


def read_plain(path: Path, encoding: str = "utf-8", text_unit: TextUnit = "blank-line") -> Records:
    """Read records with the column `text`, from the files of a folder in the order of their names.

    Documents keep the line breaks inside them.

    Raises:
        DataError: a file is blank, or not in that encoding.
    """
    files = _text_files(path) if path.is_dir() else [path]
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    for file in files:
        text = decode_file(file, encoding)
        if not text.strip():
            raise DataError(f"{file}: no text in it", "Remove the file, or fill it.")
        documents = [(1, text)] if text_unit == "file" else split_documents(text)
        rows += [{"text": document} for _, document in documents]
        lines += [line for line, _ in documents]
    # In a folder a line number alone would not name a place.
    known = lines if text_unit == "blank-line" and not path.is_dir() else None
    return Records(rows, str(path), known, columns=("text",), text_unit=text_unit)


def split_documents(text: str) -> list[tuple[int, str]]:
    """Split a text at blank lines: the line (1-based) where each document begins, and its text."""
    documents: list[tuple[int, str]] = []
    lines: list[str] = []
    for number, line in enumerate([*lines_of(text), ""], start=1):
        if line.strip():
            lines.append(line)
        elif lines:
            documents.append((number - len(lines), "\n".join(lines)))
            lines = []
    return documents


def _text_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if suffix_of(path) == ".txt")


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
    sides = [_parallel_lines(path, encoding) for path in (first, second)]
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


def _parallel_lines(path: Path, encoding: str) -> list[str]:
    if not is_file(path):
        raise DataError(
            f"{path}: no such file.{similar_file(path)}",
            "Parallel text is two files with a comma between: train.de,train.en",
        )
    return lines_of(decode_file(path, encoding))
