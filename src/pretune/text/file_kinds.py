"""What a file is, by its first bytes: archives, images, office files and others are no text.

The names of files mislead: a download may be a page that says "404", a `.csv` a workbook.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import NamedTuple

from pretune.errors import CheckpointError, DataError

#: The bytes that a kind is told by: all are within as many at the beginning.
HEAD_BYTES = 1024
_DEFLATE = b"\x1f\x8b\x08"  # gzip with the only method there is (RFC 1952)
_SAVE_AS_CSV = "Open it in a spreadsheet program and save it as CSV (UTF-8)."


class FileKind(NamedTuple):
    """A kind of file that is not text."""

    what: str  # with its article, e.g. "a PNG image"
    way_out: str  # a sentence


def _unpack(command: str) -> str:
    command = f"{command} FILE"
    return f"Decompress it first: {command}"


_SAVE_AS_TEXT = "Export its text to a .txt file."
_OTHER = "Give a file of text: .txt, .jsonl, .csv or .tsv."
#: How a compressed file is unpacked, by the end of its name.
_UNPACKING = {
    ".zst": "zstd -d",
    ".xz": "xz -dk",
    ".bz2": "bzip2 -dk",
    ".zip": "unzip",
    ".7z": "7z x",
    ".tar": "tar -xf",
    ".tgz": "tar -xf",
    ".lz4": "lz4 -d",
    ".rar": "unrar x",
}
#: Kinds by the end of a file's name; compressed files are in `_UNPACKING`.
_BY_NAME = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm"), FileKind("an Excel workbook", _SAVE_AS_CSV)),
    ".ods": FileKind("a spreadsheet", _SAVE_AS_CSV),
    **dict.fromkeys((".docx", ".doc"), FileKind("a Word document", _SAVE_AS_TEXT)),
    ".odt": FileKind("an OpenDocument text", _SAVE_AS_TEXT),
    ".pdf": FileKind("a PDF file", _SAVE_AS_TEXT),
    ".epub": FileKind("an e-book", _SAVE_AS_TEXT),
}
#: Kinds by the bytes that a file begins with.
_MAGIC = (
    (_DEFLATE, FileKind("a gzip file", _unpack("gunzip -k"))),
    (b"\x28\xb5\x2f\xfd", FileKind("a Zstandard file", _unpack("zstd -d"))),
    (b"\xfd7zXZ\0", FileKind("an xz file", _unpack("xz -dk"))),
    (b"7z\xbc\xaf\x27\x1c", FileKind("a 7-Zip archive", _unpack("7z x"))),
    (b"Rar!\x1a\x07", FileKind("a RAR archive", _unpack("unrar x"))),
    (b"\x04\x22\x4d\x18", FileKind("an LZ4 file", _unpack("lz4 -d"))),
    (b"%PDF-", FileKind("a PDF file", _SAVE_AS_TEXT)),
    (b"{\\rtf", FileKind("an RTF document", _SAVE_AS_TEXT)),
    (b"\x89PNG\r\n", FileKind("a PNG image", _OTHER)),
    (b"\xff\xd8\xff", FileKind("a JPEG image", _OTHER)),
    (b"GIF87a", FileKind("a GIF image", _OTHER)),
    (b"GIF89a", FileKind("a GIF image", _OTHER)),
    (b"\x7fELF", FileKind("a program (ELF)", _OTHER)),
    (b"MZ\x90\0", FileKind("a program (Windows)", _OTHER)),
    (b"PAR1\x15", FileKind("a Parquet file", "Let its name end in .parquet.")),
    (b"ARROW1\0\0", FileKind("an Arrow file", "Write it as Parquet.")),
    (b"FEA1", FileKind("a Feather file", "Write it as Parquet.")),
    (b"SQLite format 3\0", FileKind("an SQLite database", "Export its table as CSV.")),
    (b"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file", "Export its table as CSV.")),
    (b"\x93NUMPY", FileKind("a NumPy array", _OTHER)),
    (b"GGUF", FileKind("a GGUF model", _OTHER)),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x95|\}|\]|c|\x8a)")
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html|<head|<\?xml)", re.IGNORECASE)
_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/")
_LFS_POINTER = FileKind(
    "a Git LFS pointer, not the file itself", "Fetch the file, in its repository: git lfs pull"
)


def is_gzip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is compressed by gzip."""
    return head.startswith(_DEFLATE)


def kind_by_name(name: str) -> FileKind | None:
    """The kind that the end of a name tells; None for text and names that tell nothing."""
    name = name.lower().removesuffix(".gz")
    for suffix, command in _UNPACKING.items():
        if name.endswith(suffix):
            return FileKind(f"a compressed file ({suffix})", _unpack(command))
    return next((kind for suffix, kind in _BY_NAME.items() if name.endswith(suffix)), None)


def page_kind(head: bytes) -> FileKind | None:
    """Whether a file begins as a page of HTML or XML, which is text, but neither table nor JSON."""
    if not _PAGE.match(head):
        return None
    return FileKind(
        "a page of HTML or XML", "Perhaps a download went wrong: fetch the file itself."
    )


def kind_by_content(head: bytes, *, wide: bool = False) -> FileKind | None:
    """The kind that the first bytes tell; None for what may be text.

    `wide` says that the text is expected in UTF-16 or UTF-32, where zero bytes are usual.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(head)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return FileKind("a workbook or document of an old Microsoft Office", _SAVE_AS_CSV)
    if _BZIP2.match(head):
        return FileKind("a bzip2 file", _unpack("bzip2 -dk"))
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", _unpack("tar -xf"))
    if _PICKLE.match(head):
        return FileKind("a Python pickle", "Write it as JSON lines.")
    if _LFS.match(head):
        return _LFS_POINTER
    return None if wide else _zero_bytes(head)


def _zip_kind(head: bytes) -> FileKind:
    """Tell office files, which are ZIP archives, by the names of their first members."""
    for mark, kind in (
        (b"word/", _BY_NAME[".docx"]),
        (b"xl/", _BY_NAME[".xlsx"]),
        (b"opendocument.spreadsheet", _BY_NAME[".ods"]),
        (b"opendocument.text", _BY_NAME[".odt"]),
        (b"epub", _BY_NAME[".epub"]),
    ):
        if mark in head:
            return kind
    if b"[Content_Types].xml" in head:
        return FileKind("a workbook or document of Microsoft Office", _SAVE_AS_CSV)
    return FileKind("a ZIP archive", _unpack("unzip"))


def _zero_bytes(head: bytes) -> FileKind | None:
    """Text has no zero bytes, but for UTF-16 without a byte order mark, where half are."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) or head.count(0) < 4:
        return None  # a byte order mark is told by the decoder's error
    even, odd = (head[start::2].count(0) / max(len(head[start::2]), 1) for start in (0, 1))
    if min(even, odd) < 0.05 and max(even, odd) > 0.5:
        name = "utf-16-le" if odd > even else "utf-16-be"
        return FileKind(
            "text in UTF-16 without a byte order mark",
            f"Name its encoding: data.encoding={name}",
        )
    if head.count(0) > len(head) // 10:
        return FileKind("a binary file", _OTHER)
    return None


def refuse_binary(file: str, head: bytes, *, wide: bool = False) -> None:
    """Raise a DataError that says what a file is, unless its first bytes may be text."""
    kind = kind_by_content(head[:HEAD_BYTES], wide=wide)
    if kind is not None:
        raise DataError(f"{file}: is {kind.what}", kind.way_out.replace("FILE", file))


def refuse_lfs_pointer(path: Path) -> None:
    """Raise a CheckpointError if Git LFS has left its pointer in the place of a model's file."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:  # whoever reads the file says it better
        return
    if _LFS.match(head):
        raise CheckpointError(f"{path}: is {_LFS_POINTER.what}", _LFS_POINTER.way_out)


def suffix_of(name: object) -> str:
    """The end of a file's name that tells its format, in small letters and without `.gz`."""
    return PurePath(str(name).lower().removesuffix(".gz")).suffix
