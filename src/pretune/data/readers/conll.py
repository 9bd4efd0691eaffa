"""Columns as in the CoNLL shared tasks: a word a line, a blank line between sentences.

    EU      NNP  B-NP  B-ORG
    rejects VBZ  B-VP  O

The first column is the word, the last one its tag. Tabs separate columns, or spaces where a line
has no tab. `-DOCSTART-` lines separate documents (Tjong Kim Sang & De Meulder 2003), and end a
sentence. A file with one column has words alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretune.data.records import Records
from pretune.errors import DataError
from pretune.text.decode import decode_file

#: Endings of the names of such files; a `.txt` file may be one too, see `looks_like_conll`.
CONLL_SUFFIXES = (".conll", ".bio", ".bmes", ".bioes")
#: Tags of entities: outside, or a letter of a tagging scheme and a type.
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_SPACES = re.compile("[ \t]+")  # not \s: in Chinese text an ideographic space may be a word
_PROBE_BYTES = 1 << 16


def looks_like_conll(path: Path) -> bool:
    """Whether a text file has such columns: every line near its beginning ends in a tag."""
    with path.open("rb") as file:
        raw = file.read(_PROBE_BYTES)
    # Latin-1 reads any encoding that keeps ASCII: only the ends of the lines are looked at.
    lines = [line.strip() for line in raw.decode("latin-1").split("\n")]
    lines = [line for line in (lines if len(raw) < _PROBE_BYTES else lines[:-1]) if line]
    fields = [_SPACES.split(line) for line in lines if not line.startswith("-DOCSTART-")]
    return len(fields) > 1 and all(len(f) > 1 and _TAG.fullmatch(f[-1]) for f in fields)


def read_conll(path: Path, encoding: str = "utf-8") -> Records:
    """Read one record a sentence, with `tokens` and (unless there is one column) `ner_tags`.

    A record's line is the line of its first word; its other words are on the lines after it.

    Raises:
        DataError: a line has another number of columns than the first, or an empty word.
    """
    rows: list[dict[str, Any]] = []
    starts: list[int] = []
    width = 0
    for start, lines in _sentences(decode_file(path, encoding)):
        words = []
        for number, line in enumerate(lines, start=start):
            fields = line.split("\t") if "\t" in line else _SPACES.split(line)
            width = width or len(fields)
            if len(fields) != width or not fields[0] or not fields[-1]:
                raise DataError(
                    f"{path}, line {number}: {len(fields)} columns ({line[:40]!r}), but the lines "
                    f"before have {width}"
                    if len(fields) != width
                    else f"{path}, line {number}: an empty column ({line[:40]!r})",
                    "Each line is a word and its tag with a tab between them; a blank line ends a "
                    "sentence.",
                )
            words.append(fields)
        row: dict[str, Any] = {"tokens": [fields[0] for fields in words]}
        if width > 1:
            row["ner_tags"] = [fields[-1] for fields in words]
        rows.append(row)
        starts.append(start)
    return Records(rows, str(path), starts, tuple(rows[0]) if rows else (), line_items=True)


def _sentences(text: str) -> Iterator[tuple[int, list[str]]]:
    start, lines = 0, list[str]()
    for number, raw in enumerate([*text.split("\n"), ""], start=1):
        line = raw.rstrip(" \t\r").lstrip(" ")
        if not line or line.startswith("-DOCSTART-"):
            if lines:
                yield start, lines
            lines = []
            continue
        if not lines:
            start = number
        lines.append(line)
