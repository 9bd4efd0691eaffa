"""Plain text as records: a file is one text, a folder is the texts of its `.txt` files."""

from __future__ import annotations

from pathlib import Path

from pretune.data.records import Records, decode
from pretune.errors import DataError


def is_plain(path: Path) -> bool:
    """Whether this is plain text: a `.txt` file, or a folder with some in it."""
    if path.is_dir():
        return bool(_texts(path))
    return path.suffix.lower() == ".txt" and path.is_file()


def read_plain(path: Path, encoding: str = "utf-8") -> Records:
    """One record a file, with the column `text`; the files of a folder by name.

    Raises:
        DataError: a file is empty, or not in that encoding.
    """
    files = _texts(path) if path.is_dir() else [path]
    rows = []
    for file in files:
        text = decode(file, encoding)
        if not text.strip():
            raise DataError(f"{file}: no text in it", "Remove the file, or fill it.")
        rows.append({"text": text})
    return Records(rows=rows, origin=str(path), columns=("text",))


def _texts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".txt")
