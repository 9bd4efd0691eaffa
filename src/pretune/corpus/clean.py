"""What is done to the text of a document before it is tokenized."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# The C0 and C1 controls but tab and line feed, and the byte order mark. Format characters stay:
# they hold emoji together (U+200D) and separate letters in Persian (U+200C).
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_SPACES = re.compile(r"[^\S\n]+")
_WIDE = (
    "[\u2e80-\u2fdf\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60"
    "\U00020000-\U0003ffff]"
)
# Chinese and Western texts write these alike: they are as wide as what is on their other side.
_EITHER = "[“”‘’…—·]"
_BETWEEN_WIDE = re.compile(
    rf"(?<={_WIDE})\n(?={_WIDE}|{_EITHER})|(?<={_EITHER})\n(?={_WIDE})"
    rf"|(?<={_WIDE}{_EITHER})\n(?={_EITHER}{_WIDE})"
)
_SINGLE_BREAK = re.compile(r"(?<=[^\n])\n(?=[^\n])")


@dataclass(frozen=True)
class Cleaning:
    """Which steps are taken, in this order.

    Attributes:
        nfc: Unicode's normal form C, so that é is one character however it was typed.
        control: control characters are removed; other line breaks become line feeds.
        spaces: every run of spaces and tabs becomes one space; lines lose those at their ends.
        join_lines: lines wrapped at a column become one: a single line break becomes a space, or
            nothing between Chinese characters and their punctuation; blank lines stay.
        repeated_lines: a line that stood in the document before is dropped.
        min_chars: a document with fewer characters is dropped.
    """

    nfc: bool = True
    control: bool = True
    spaces: bool = True
    join_lines: bool = False
    repeated_lines: bool = False
    min_chars: int = 1


def clean(text: str, options: Cleaning) -> tuple[str, list[str]]:
    """Clean a document.

    Returns:
        The text, and the names of the steps that changed it.
    """
    changed = []
    for name, step in _STEPS.items():
        if getattr(options, name):
            after = step(text)
            if after != text:
                changed.append(name)
                text = after
    return text, changed


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _control(text: str) -> str:
    return _CONTROL.sub("", _LINE_BREAK.sub("\n", text))


def _spaces(text: str) -> str:
    lines = _SPACES.sub(" ", text).split("\n")
    return "\n".join(line.strip(" ") for line in lines).strip("\n")


def _join_lines(text: str) -> str:
    return _SINGLE_BREAK.sub(" ", _BETWEEN_WIDE.sub("", text))


def _repeated_lines(text: str) -> str:
    seen: set[str] = set()
    kept = []
    for line in text.split("\n"):
        words = line.strip()
        if not words or words not in seen:
            kept.append(line)
            seen.add(words)
    return "\n".join(kept)


_STEPS = {
    "nfc": _nfc,
    "control": _control,
    "spaces": _spaces,
    "join_lines": _join_lines,
    "repeated_lines": _repeated_lines,
}
