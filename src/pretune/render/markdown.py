"""Markdown in which text from data stays text: it makes no table cell, no link, no HTML."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

#: Letters that mean something in Markdown, HTML or the Hub's formulas.
_SPECIAL = re.compile(r"[&<>|`*_\[\]\\~#$!{}]|(?<=\w):(?=//)|(?<=www)\.|@(?=\w)")
#: Invisible signs that turn the order of what stands after them around.
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: Longer texts say no more in a table.
_LONGEST = 200


def one_line(text: object) -> str:
    """A text on one line, without control characters."""
    shown = "".join(
        " " if unicodedata.category(c) in {"Cc", "Zl", "Zp", "Cs"} else c for c in str(text)
    )
    return " ".join(_TURNING.sub("", shown).split())


def plain(text: object) -> str:
    """A text that Markdown shows as it is, inside a line; on one line, and cut where very long."""
    line = one_line(text)
    if len(line) > _LONGEST:
        line = line[: _LONGEST - 1] + "…"
    # Entities, not backslashes: what they stand for is never read as structure.
    return _SPECIAL.sub(lambda m: f"&#{ord(m[0])};", line)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose first column is text and whose others are numbers; cells are escaped."""
    lines = [
        _row(header),
        "|" + "|".join([":---", *["---:"] * (len(header) - 1)]) + "|",
        *map(_row, rows),
    ]
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def fenced(text: str, language: str) -> str:
    """A block of code that no text can end early."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
