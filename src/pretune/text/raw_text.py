"""Reading raw text as a stream: files, folders, globs and standard input, in pieces."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from pretune.errors import DataError
from pretune.text.byte_stream import STDIN, OnBytes, display_name, first_bytes, is_pipe
from pretune.text.decode import LONGEST_RECORD, Problem, check_encoding, decoded, json_field
from pretune.text.file_kinds import kind_by_name

#: Files of a folder that are read, here and by `pretune prepare`, so that a vocabulary and a corpus
#: come from the same text. Each may have `.gz` after it.
IN_FOLDERS = (".txt", ".text", ".md", ".jsonl", ".ndjson")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".csv", ".tsv")
#: Files about a corpus that are not part of it; they are read only where they are named.
ABOUT = ("readme", "license", "licence")

#: The longest piece, in characters.
PIECE_CHARS = 1 << 14

#: Up to the last white space before a word. BERT's and GPT-2's pre-tokenizers find the same words
#: on both sides of a cut there (GPT-2's words begin with the space before them).
_CUT = re.compile(r".+(?=[ \t\n]\S)", re.DOTALL)


def text_kind(path: str) -> Literal["text", "json"]:
    """How a file is read, by its name (`.gz` may follow); anything but text is a DataError."""
    name = path.lower().removesuffix(".gz")
    if name.endswith(_TABLES):
        raise DataError(
            f"{path}: a table is not read as a corpus",
            "Write its column of texts as JSON lines first.",
        )
    if name.endswith(".parquet"):
        raise DataError(
            f"{path}: is a Parquet file, not plain text",
            "Decompress it first, or write its column of texts as JSON lines.",
        )
    if (kind := kind_by_name(name)) is not None:
        raise DataError(
            f"{path}: is {kind.what}, not plain text", kind.way_out.replace("FILE", path)
        )
    # A pipe may have no name that tells: there a brace begins JSON lines.
    json = name.endswith(_JSON_LINES) or (is_pipe(path) and first_bytes(path, 1) == b"{")
    return "json" if json else "text"


def is_text_file(name: str) -> bool:
    """Whether a file of a folder is read as text, by its name in small letters."""
    return name.removesuffix(".gz").endswith(IN_FOLDERS)


def files_in_folder(folder: str, belongs: Callable[[str], bool] = is_text_file) -> list[str]:
    """The files that belong in a folder and in the folders below it, sorted by path.

    Hidden files, hidden folders, and a README or LICENSE are left out. `belongs` is asked with the
    name in small letters.
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [
            str(Path(parent, name))
            for name in names
            if not name.lower().startswith((".", *ABOUT)) and belongs(name.lower())
        ]
    return sorted(path for path in paths if os.path.isfile(path))


def find_files(sources: Iterable[str | Path]) -> list[str]:
    """Find the files that sources name.

    Args:
        sources: files, folders (see `files_in_folder`), patterns such as `books/*.txt` or
            `books/**/*.txt`, and `-` for standard input.

    Returns:
        the paths, sorted, so that the order of the sources does not matter; each file once; `-`
        last.

    Raises:
        DataError: a source names nothing, or something that is not text.
    """
    files: dict[str, str] = {}
    for source in map(str, sources):
        for path in [STDIN] if source == STDIN else _named(source):
            files.setdefault(path if path == STDIN else os.path.realpath(path), path)
    return sorted(files.values(), key=lambda path: (path == STDIN, path))


def _named(source: str) -> list[str]:
    if os.path.isdir(source):
        paths = files_in_folder(source)
        if not paths:
            raise DataError(
                f"{source}: no text files in that folder",
                f"Files that end in {', '.join(IN_FOLDERS)} are read, each also with .gz; name "
                "others one by one.",
            )
        return paths
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


def iter_texts(
    files: Iterable[str],
    *,
    encoding: str = "utf-8",
    field: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Iterator[str]:
    """Read the text of files, unchanged (line ends too), in pieces of at most `PIECE_CHARS`.

    A piece ends before white space where there is any. Memory does not grow with the files: it
    holds a piece, a chunk of `READ_BYTES` bytes and the longest JSONL record.

    Args:
        files: as `find_files` returns them; `text_kind` decides how each is read. `.gz` is
            unpacked.
        encoding: of all files.
        field: the field with the text in a JSONL record; default `text`. Where it is given,
            standard input is read as JSONL too.
        on_bytes: called with the number of bytes read from the disk since the last call.

    Raises:
        DataError: a file cannot be read, is not in that encoding, or is not JSONL with such a
            field; names file and line. Or a field is given, and no file has fields.
    """
    # Find mistakes before the first text is read.
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
            for text in _record_texts(file, chunks, field or "text"):
                yield from _pieces([text])
        else:
            yield from _pieces(chunks)


def _record_texts(file: str, chunks: Iterable[str], field: str) -> Iterator[str]:
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
        # The beginning of a line that goes on in the next chunk; joined once, as it may be long.
        parts.append(rest)
        held += len(rest)
        if held > LONGEST_RECORD:
            raise DataError(
                f"{display_name(file)}, line {number}: "
                f"a record of over {LONGEST_RECORD:,} characters",
                "Write it as a .txt file, which may be of any size, or as several records.",
            )


def _pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Cut chunks anew into pieces of at most `PIECE_CHARS`, before white space where possible."""
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
