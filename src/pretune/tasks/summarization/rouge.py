"""ROUGE (Lin 2004): how much a summary and a reference have in common, as F1 of their words.

ROUGE-1 and ROUGE-2 count common words and pairs of words, each as often as both have it (section
2); ROUGE-L takes the longest common subsequence of words (section 3.1). A word is a run of letters
and digits in lower case, without a stemmer; each Chinese character is a word by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(f"[{_HAN}]|[^\\W_{_HAN}]+")


@dataclass(frozen=True)
class Rouge:
    """The three figures of a summary, from 0 to 1."""

    rouge1: float
    rouge2: float
    rouge_l: float


def rouge(summary: str, reference: str) -> Rouge:
    """Compare a summary with a reference."""
    own, wanted = words(summary), words(reference)
    both = longest_common(own, wanted)
    return Rouge(_common(own, wanted, 1), _common(own, wanted, 2), _f1(both, len(own), len(wanted)))


def words(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def _common(own: Sequence[str], wanted: Sequence[str], size: int) -> float:
    """F1 of the n-grams of a size, each counted as often as both texts have it."""
    first, second = (
        Counter(zip(*(of[i:] for i in range(size)), strict=False)) for of in (own, wanted)
    )
    return _f1((first & second).total(), first.total(), second.total())


def _f1(both: int, own: int, wanted: int) -> float:
    """2 P R / (P + R), with P = both / own and R = both / wanted; 0 where nothing is common."""
    return 2 * both / (own + wanted) if both else 0.0


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    A row of the usual table is the bits of one number (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited"): a 0 where the length grows.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    row = every = (1 << len(first)) - 1
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(first) - row.bit_count()
