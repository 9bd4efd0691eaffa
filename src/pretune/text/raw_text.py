"""Reading raw text as a stream: files, folders, globs and standard input, in pieces."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pretune.errors import DataError
from pretune.text.decode import (
    STDIN,
    OnBytes,
    Problem,
    check_encoding,
    decoded,
    display_name,
    json_field,
)

#: What is read of a folder, here and by `pretune prepare`, so that a vocabulary and a corpus are of
#: the same text; each also with `.gz` after it.
IN_FOLDERS = (".txt", ".text", ".md", ".jsonl", ".ndjson")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv")
#: What stands beside a corpus and is not part of it; read where it is named itself.
ABOUT = ("readme", "license", "licence")
#: Files that are no text. Read as such they would fail at some byte, with an error that misleads.
NOT_TEXT = (".parquet", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz", ".pdf", ".docx")

#: Characters of a piece.
PIECE_CHARS = 1 << 14
#: Characters of the longest JSONL record.
LONGEST_RECORD = 1 << 26

#: The last of some white space before a word. BERT's and GPT-2's pre-tokenizers find the same words
#: on both sides of a cut there (GPT-2's words begin with the space before them).
_CUT = re.compile(r".+(?=[ \t\n]\S)", re.DOTALL)


def text_kind(path: str) -> Literal["text", "json"]:
    """How a file is read, by its name: as plain text, or as JSON lines; `.gz` may follow.

    Raises:
        DataError: as neither.
    """
    name = path.lower().removesuffix(".gz")
    if name.endswith(_TABLES):
        raise DataError(
            f"{path}: a table is no corpus format", "Write its column of texts as JSON lines first."
        )
    if name.endswith(NOT_TEXT):
        raise DataError(f"{path}: not plain text", "Unpack or convert it first, to .txt or .jsonl.")
    return "json" if name.endswith(_JSON_LINES) else "text"


def find_files(sources: Iterable[str | Path]) -> list[str]:
    """The files that sources name.

    Args:
        sources: files, folders (all text files in them and in the folders below, but nothing
            hidden and no README or LICENSE), patterns such as
            `books/*.txt` or `books/**/*.txt`, and `-`.

    Returns:
        sorted by path, so that the order in which they were named does not matter; each once;
        `-` last.

    Raises:
        DataError: one names nothing, or something that is no text.
    """
    found: dict[str, str] = {}
    for source in map(str, sources):
        paths = [STDIN] if source == STDIN else _named(source)
        for path in paths:
            found.setdefault(path if path == STDIN else os.path.realpath(path), path)
    return sorted(found.values(), key=lambda path: (path == STDIN, path))


def _named(source: str) -> list[str]:
    if os.path.isdir(source):
        return _in_folder(source)
    if os.path.exists(source):
        paths = [source]
    else:
        paths = [p for p in glob.glob(source, recursive=True) if not os.path.isdir(p)]
    if not paths:
        what = "nothing fits the pattern" if glob.has_magic(source) else "no such file"
        raise DataError(
            f"{source}: {what}", "Check the path; relative paths start at the current folder."
        )
    for path in paths:
        text_kind(path)  # refuses what cannot be read
    return paths


def _in_folder(folder: str) -> list[str]:
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            os.path.join(parent, name)
            for name in names
            if not name.startswith(".")
            and not name.lower().startswith(ABOUT)
            and name.lower().removesuffix(".gz").endswith(IN_FOLDERS)
        ]
    if not paths:
        raise DataError(
            f"{folder}: no text files in that folder",
            f"Files that end in {', '.join(IN_FOLDERS)} are read, each also with .gz; name others "
            "one by one.",
        )
    return paths


def iter_texts(
    files: Iterable[str],
    *,
    encoding: str = "utf-8",
    field: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Iterator[str]:
    """The text of files, unchanged (line ends too), in pieces of at most `PIECE` characters.

    A piece ends before white space where there is any. Memory does not grow with the files: a
    piece, a chunk of `CHUNK` bytes and the longest JSONL record are held.

    Args:
        files: as `find_files` gives them, read as `text_kind` says. `.gz` is unpacked; JSONL is one
            record a line.
        encoding: of all of them.
        field: where the text is in a JSONL record; default `text`. Where it is given, standard
            input is JSONL too.
        on_bytes: told the number of bytes read since the last time, as they lie on the disk.

    Raises:
        DataError: not to be read, or not in that encoding, or not JSONL with such a field; names
            file and line. Or a field is given, and no file has any.
    """
    check_encoding(encoding)
    stdin: Literal["text", "json"] = "text" if field is None else "json"
    kinds = {file: stdin if file == STDIN else text_kind(file) for file in files}
    if field is not None and kinds and "json" not in kinds.values():
        raise DataError(
            f"--field {field}: none of the files is JSON lines, so there are no fields",
            f"Leave it out, or let names of records end in {', '.join(_JSON_LINES)}.",
        )
    for file, kind in kinds.items():
        chunks = decoded(file, encoding, on_bytes)
        if kind == "json":
            for text in _records(file, chunks, field or "text"):
                yield from _pieces([text])
        else:
            yield from _pieces(chunks)


def _records(file: str, chunks: Iterable[str], field: str) -> Iterator[str]:
    """The field of each record of JSONL."""
    parts: list[str] = []
    held = 0
    number = 1
    for chunk in itertools.chain(chunks, ["\n"]):  # the last line may lack its end
        *lines, rest = chunk.split("\n")
        for line in lines:
            whole = "".join([*parts, line])
            parts, held = [], 0
            if whole.strip():
                text = json_field(whole, f"{display_name(file)}, line {number}", field)
                if isinstance(text, Problem):
                    raise DataError(text.message, text.hint)
                yield text
            number += 1
        parts.append(rest)
        held += len(rest)
        if held > LONGEST_RECORD:
            raise DataError(
                f"{display_name(file)}, line {number}: "
                f"a record of over {LONGEST_RECORD:,} characters",
                "Write it as a .txt file, which may be of any size, or as several records.",
            )


def _pieces(chunks: Iterable[str]) -> Iterator[str]:
    held = ""
    for chunk in chunks:
        held += chunk
        start = 0
        while len(held) - start > PIECE_CHARS:
            before = _CUT.match(held, start, start + PIECE_CHARS + 1)
            end = start + PIECE_CHARS if before is None else before.end()
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held
