"""Plain text as records: `.txt` files, or all `.txt` files of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pretune.data.records import Records
from pretune.errors import DataError
from pretune.text.decode import decode_file, lines_of

#: What one record of a text file is: a document between blank lines, or the whole file.
TextUnit = Literal["blank-line", "file"]

#: The units of `pretune prepare` and of `read`, as both tell people what they did.
TEXT_UNITS = {
    "blank-line": "blank lines separate the documents of a text file",
    "line": "each line of a text file is a document",
    "file": "each text file is one document",
}


def is_plain(path: Path) -> bool:
    """Whether a path is plain text: a `.txt` file, or a folder with `.txt` files in it."""
    if path.is_dir():
        return bool(_text_files(path))
    return path.suffix.lower() == ".txt" and path.is_file()


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
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".txt")
