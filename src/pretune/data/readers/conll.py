"""Columns as the CoNLL shared tasks have them: a word a line, a blank line between sentences.

    EU      NNP  B-NP  B-ORG
    rejects VBZ  B-VP  O

The first column is the word, the last one its tag; columns are separated by tabs, or by spaces
where a line has no tab. `-DOCSTART-` lines part documents (Tjong Kim Sang & De Meulder 2003), and
so sentences. A file with one column has words alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretune.errors import DataError

#: Endings of the names of such files; `.txt` may be one as well, see `looks_like_conll`.
CONLL_SUFFIXES = (".conll", ".bio", ".bmes", ".bioes")
#: What tags of entities look like: outside, or a letter of a scheme and a type.
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_SPACES = re.compile("[ \t]+")  # not \s: a word of Chinese text may be an ideographic space
_PROBE = 1 << 16


def looks_like_conll(path: Path) -> bool:
    """Whether a text file has such columns: every line of its beginning ends in a tag."""
    with path.open("rb") as file:
        raw = file.read(_PROBE)
    # Of any encoding that keeps ASCII: only the ends of the lines are looked at.
    lines = [line.strip() for line in raw.decode("latin-1").split("\n")]
    lines = [line for line in (lines if len(raw) < _PROBE else lines[:-1]) if line]
    fields = [_SPACES.split(line) for line in lines if not line.startswith("-DOCSTART-")]
    return len(fields) > 1 and all(len(f) > 1 and _TAG.fullmatch(f[-1]) for f in fields)


def conll_rows(path: Path, text: str) -> tuple[list[dict[str, Any]], list[int]]:
    """One row a sentence, with `tokens` and (unless there is one column) `ner_tags`.

    Args:
        path: for errors.
        text: what the file holds.

    Returns:
        the rows, and the line each begins at; its words stand on the lines from there on.

    Raises:
        DataError: a line has another number of columns than the first, or an empty word.
    """
    rows: list[dict[str, Any]] = []
    starts: list[int] = []
    width = 0
    for start, lines in _sentences(text):
        found = []
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
            found.append(fields)
        row: dict[str, Any] = {"tokens": [fields[0] for fields in found]}
        if width > 1:
            row["ner_tags"] = [fields[-1] for fields in found]
        rows.append(row)
        starts.append(start)
    return rows, starts


def _sentences(text: str) -> Iterator[tuple[int, list[str]]]:
    """The line (1-based) at which a sentence begins, and its lines."""
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
