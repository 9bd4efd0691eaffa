"""Counts over the texts of a data file: words, lengths, scripts, what becomes [UNK]."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Any

from pretune.data.records import is_missing
from pretune.tokenizers.tokenizer import Tokenizer, explained
from pretune.tokenizers.unknown import DroppedCharacters

#: A Chinese or Japanese character counts as a word: there are no spaces to go by.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_HAN}]|[^\\W{_HAN}]+(?:['’][^\\W{_HAN}]+)*")
#: Unknown pieces of text that are counted one by one, so that memory is bounded.
_MAX_UNKNOWN = 10_000

#: First and last characters of the blocks of each script in the Unicode standard.
_BLOCKS = {
    "Latin": ((0x0041, 0x024F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "Greek": ((0x0370, 0x03FF),),
    "Cyrillic": ((0x0400, 0x052F),),
    "Hebrew": ((0x0590, 0x05FF),),
    "Arabic": ((0x0600, 0x077F),),
    "Devanagari": ((0x0900, 0x097F),),
    "Thai": ((0x0E00, 0x0E7F),),
    "Kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF)),
    "CJK": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    "Hangul": ((0x1100, 0x11FF), (0xAC00, 0xD7AF)),
}


def count_words(text: str) -> int:
    """Count the words of a text; each Chinese or Japanese character is a word."""
    return len(_WORD.findall(text))


def script_shares(characters: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each script among the letters, by Unicode block, most frequent first."""
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            scripts[_script(ord(character))] += count
    total = max(scripts.total(), 1)
    return {name: count / total for name, count in scripts.most_common()}


def _script(code: int) -> str:
    blocks = ((name, first, last) for name, own in _BLOCKS.items() for first, last in own)
    return next((name for name, first, last in blocks if first <= code <= last), "other")


@dataclass
class Lengths:
    """Counts of text lengths, which give exact quantiles whatever the number of rows."""

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Number of lengths counted."""
        return self.counts.total()

    @property
    def mean(self) -> float:
        """Mean length; 0 if there is none."""
        total = sum(length * count for length, count in self.counts.items())
        return total / max(self.rows, 1)

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least a share (0 to 1) of the rows does not exceed."""
        needed, ordered = share * self.rows, sorted(self.counts)
        sums = accumulate(self.counts[length] for length in ordered)
        return next((n for n, seen in zip(ordered, sums, strict=True) if seen >= needed), 0)

    def share_over(self, limit: int) -> float:
        """Return the share of the rows that are longer than a limit."""
        over = sum(count for length, count in self.counts.items() if length > limit)
        return over / max(self.rows, 1)

    def to_dict(self) -> dict[str, float]:
        """Convert to plain values for JSON."""
        shares = {"median": 0.5, "p95": 0.95, "max": 1.0, "min": 0.0}
        return {"mean": self.mean, **{name: self.quantile(s) for name, s in shares.items()}}


@dataclass
class UnknownTokens:
    """What becomes [UNK] in the texts of a file."""

    tokens: int = 0  # of all texts, special tokens included
    lost: int = 0  # tokens that are [UNK]
    pieces: Counter[str] = field(default_factory=Counter)  # unknown characters, and whole words
    places: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        share = self.lost / max(self.tokens, 1)
        return {"tokens": self.tokens, "unk": self.lost, "share": share, "pieces": self.pieces}


class TokenCounter:
    """Counts the tokens of texts, or of pairs, as a model would read them without truncation."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.unknown = UnknownTokens()
        self._tokenizer = tokenizer
        self._engine, self._origin = tokenizer.engine, tokenizer.origin
        self._dropped = DroppedCharacters(tokenizer.engine)
        self._lost = tokenizer.special_id("unk_token")
        self._knows = cache(self._known)

    def count(self, rows: Sequence[int], texts: Sequence[Sequence[str]]) -> list[int]:
        """Count the tokens of each record: a single text, a pair, or several, which are joined."""
        # A pair has a layout of its own, with a separator.
        inputs: Any = [tuple(parts) if len(parts) == 2 else "\n".join(parts) for parts in texts]
        with explained(self._engine, inputs, self._origin):
            encodings = self._encoded(inputs)
        for row, parts, encoding in zip(rows, texts, encodings, strict=True):
            self.unknown.tokens += len(encoding.ids)
            for dropped in map(self._dropped, parts):
                # Without [UNK]: they count as if they were one each.
                self.unknown.tokens += dropped.total()
                self.unknown.lost += dropped.total()
                self._add(row, dropped)
            if self._lost is not None and self._lost in encoding.ids:
                whole = parts if len(parts) == 2 else ["\n".join(parts)]
                self._note(row, whole, encoding)
        return [len(encoding.ids) for encoding in encodings]

    def _encoded(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Encode texts and pairs, all together where one engine does both steps."""
        if self._tokenizer.cutter is None:
            return self._engine.encode_batch(inputs)
        pairs = [own if isinstance(own, tuple) else (own, None) for own in inputs]
        return [
            self._tokenizer.encode([first], None if second is None else [second])[0]
            for first, second in pairs
        ]

    def _note(self, row: int, parts: Sequence[str], encoding: Any) -> None:
        """Note which characters or words of a record became [UNK]."""
        places = zip(encoding.ids, encoding.offsets, encoding.sequence_ids, strict=True)
        for token, (start, end), source in places:
            if token != self._lost or source is None:
                continue
            self.unknown.lost += 1
            # A word is blamed on its unknown characters, if it has any.
            piece = parts[source][start:end]
            self._add(row, Counter([c for c in piece if not self._knows(c)] or [piece]))

    def _add(self, row: int, lost: Counter[str]) -> None:
        for piece, count in lost.items():
            if piece in self.unknown.pieces or len(self.unknown.pieces) < _MAX_UNKNOWN:
                self.unknown.pieces[piece] += count
                self.unknown.places.setdefault(piece, row)

    def _known(self, character: str) -> bool:
        return self._lost not in self._engine.encode(character, add_special_tokens=False).ids


def count_types(values: Iterable[Any]) -> Counter[str]:
    """Count the types of values; empty texts, nulls and NaN count as "missing"."""
    return Counter("missing" if is_missing(value) else _kind(value) for value in values)


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true/false", int: "whole number", float: "number", dict: "object"}
    return names.get(type(value), type(value).__name__)
