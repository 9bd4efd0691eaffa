"""How much longer than a text its normalized form can be: a small file may ask for gigabytes."""

from __future__ import annotations

import base64
import binascii
import re._parser  # type: ignore[import-not-found]
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pretune.errors import CheckpointError

#: The most bytes that the rules of a tokenizer may make of one byte of text. Published tokenizers
#: stay under 20.
MOST_GROWTH = 100


def refuse_growth(path: Path, parts: Mapping[str, Any]) -> None:
    """Refuse a `tokenizer.json` whose rules, one after the other, can blow a text up.

    Args:
        path: of the file, for errors.
        parts: its content.

    Raises:
        CheckpointError: `normalizer` or `decoder` can make over `MOST_GROWTH` bytes of one.
    """
    for name in ("normalizer", "decoder"):
        growth = 1.0
        for rule in _rules(parts.get(name)):
            growth *= _growth(rule)
            if growth > MOST_GROWTH:
                raise CheckpointError(
                    f"{path}: {name}: its rules can make over {MOST_GROWTH} bytes of one byte of "
                    "text, which would fill the memory",
                    "Take another tokenizer, or remove the Replace rules with long contents.",
                )


def _rules(part: Any) -> Iterator[Mapping[str, Any]]:
    """The rules in a normalizer or a decoder, in their order; sequences may be nested."""
    if not isinstance(part, Mapping):
        return
    if part.get("type") == "Sequence":
        for inner in part.get("normalizers") or part.get("decoders") or ():
            yield from _rules(inner)
    else:
        yield part


def _growth(rule: Mapping[str, Any]) -> float:
    """The most bytes that a rule makes of one byte, at least 1."""
    if rule.get("type") == "Replace":
        made = len(str(rule.get("content", "")).encode())
        pattern = rule.get("pattern")
        least = _shortest(pattern if isinstance(pattern, Mapping) else {})
        # A pattern that matches between two characters adds to them.
        return max(1.0, made / least if least else 1.0 + made)
    if rule.get("type") == "Precompiled":
        return max(1.0, _longest_entry(str(rule.get("precompiled_charsmap", ""))) / 3)
    return 1.0


def _shortest(pattern: Mapping[str, Any]) -> int:
    """The fewest bytes that a pattern matches."""
    if "String" in pattern:
        return len(str(pattern["String"]).encode())
    regex = str(pattern.get("Regex", ""))
    try:
        least: int = re._parser.parse(regex).getwidth()[0]
    except (re.error, OverflowError, RecursionError):
        # Oniguruma knows more than Python; a pattern of its own matches a character or more, apart
        # from look-around and what may be missing.
        return 0 if re.match(r"(\(\?[=!<]|\\b|\^|\$)|.*[*?]$", regex) else 1
    return least


def _longest_entry(charsmap: str) -> int:
    """The bytes of the longest text in SentencePiece's table of replacements."""
    try:
        table = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 0
    # The size of a trie, the trie, and texts that end with NUL.
    start = 4 + int.from_bytes(table[:4], "little")
    return max(map(len, table[start:].split(b"\0")), default=0)
