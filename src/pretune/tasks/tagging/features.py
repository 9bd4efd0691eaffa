"""Sentences as windows of tokens in which the first piece of each word has its label."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretune.data.arrays import Array
from pretune.data.records import Records
from pretune.errors import DataError

#: Targets of a token: which word of its sentence begins there (-1: none that counts in this
#: window); and its label.
WORD, LABEL = "word", "label"
#: Targets of a window: whether the words that count in it are the first, the last of the sentence.
BEGINS, ENDS = "begins", "ends"

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
#: What is no punctuation around a word, though Unicode says so.
_OF_WORDS = frozenset("_@#$€£")
_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class _Letter:
    """A character with what is written on it.

    Attributes:
        start: its first character.
        end: the one after its last.
        base: the character that the others are on; empty where there is none.
    """

    start: int
    end: int
    base: str

    @property
    def is_punctuation(self) -> bool:
        """Whether it is a word of its own at the ends of a word; inside (U.S, AL-AIN) it is not."""
        kind = unicodedata.category(self.base)[0] if self.base else ""
        return kind in ("P", "S") and self.base not in _OF_WORDS


def _letters(text: str) -> list[_Letter]:
    """The characters of a text without spaces; marks and formats are with the one before them.

    Where there is none before them, they are with the one after. A joiner joins two symbols to one.
    """
    found: list[_Letter] = []
    for i, character in enumerate(text):
        if character.isspace():
            continue
        kind = unicodedata.category(character)
        base = "" if kind[0] == "M" or kind == "Cf" else character
        last = found[-1] if found and found[-1].end == i else None
        joined = kind[0] == "S" and text[i - 1 : i] == _JOINER
        if last is not None and (not base or not last.base or joined):
            found[-1] = _Letter(last.start, i + 1, last.base or base)
        else:
            found.append(_Letter(i, i + 1, base))
    return found


def _chunks(letters: Sequence[_Letter]) -> Iterator[Sequence[_Letter]]:
    """What spaces part; each Chinese character by itself."""
    first = 0
    for i in range(1, len(letters) + 1):
        if (
            i == len(letters)
            or letters[i].start > letters[i - 1].end
            or _CJK.match(letters[i].base)
            or _CJK.match(letters[i - 1].base)
        ):
            yield letters[first:i]
            first = i


def split_words(text: str, *, characters: bool = False) -> list[tuple[int, int]]:
    """The words of a text: the first character of each, and the one after its last.

    Args:
        text: any.
        characters: whether every character is a word, as in Chinese data; else only Chinese ones.
    """
    letters = _letters(text)
    if characters:
        return [(letter.start, letter.end) for letter in letters]
    found = []
    for chunk in _chunks(letters):
        inside = [i for i, letter in enumerate(chunk) if not letter.is_punctuation]
        low, high = (inside[0], inside[-1] + 1) if inside else (len(chunk), len(chunk))
        found += [(letter.start, letter.end) for letter in chunk[:low]]
        if inside:
            found.append((chunk[low].start, chunk[high - 1].end))
        found += [(letter.start, letter.end) for letter in chunk[high:]]
    return found


def words_of(records: Records, row: int, *, characters: bool) -> list[str]:
    """The words of a record: `tokens` as they are, or the words of a text.

    Raises:
        DataError: it is neither a text nor a list of texts.
    """
    value = records.rows[row].get("tokens")
    if isinstance(value, str):
        text = records.text(row, "tokens")
        return [text[a:b] for a, b in split_words(text, characters=characters)]
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return value
    raise DataError(
        f"{records.where(row, 'tokens')}: expected a list of words or a text, found "
        + ("nothing" if value is None else f"{value!r}"[:60]),
        'Write ["New", "York", "is", "big"], or a text to predict on.',
    )


@dataclass(frozen=True)
class Window:
    """Some words of a sentence: those that are read, and of these those that count.

    Attributes:
        start: the first that is read; and
        end: the one after the last.
        first: the first that counts; and
        stop: the one after the last.
    """

    start: int
    end: int
    first: int
    stop: int


def windows(sizes: Sequence[int], room: int, overlap: int) -> list[Window]:
    """Windows over a sentence; each word counts in the one that shows most around it.

    "Most": the lesser of the tokens before and after it, as BERT's own script for SQuAD has it (its
    "maximum context"); of two alike the first. A window in which no word counts is left out.

    Args:
        sizes: tokens of each word, at least 1 and at most `room`.
        room: tokens of a window.
        overlap: tokens that it shares with the next at the most.
    """
    places = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))])
    count = len(sizes)
    read = [(0, int(np.searchsorted(places, room, side="right")) - 1)]
    while read[-1][1] < count:
        start, end = read[-1]
        shared = int(np.searchsorted(places, places[end] - overlap, side="left"))
        start = max(start + 1, min(shared, end))
        end_at = int(np.searchsorted(places, places[start] + room, side="right")) - 1
        # A long word may not fit behind what would be shared: then less is.
        while end_at <= end:
            start += 1
            end_at = int(np.searchsorted(places, places[start] + room, side="right")) - 1
        read.append((start, end_at))
    if len(read) == 1:
        return [Window(0, count, 0, count)]
    best = np.full(count, -1, dtype=np.int64)
    owner = np.zeros(count, dtype=np.int64)
    for number, (start, end) in enumerate(read):
        before = places[start:end] - places[start]
        after = places[end] - places[start + 1 : end + 1]
        context = np.minimum(before, after)
        better = context > best[start:end]
        best[start:end][better] = context[better]
        owner[start:end][better] = number
    found = []
    for number, (start, end) in enumerate(read):
        own = np.flatnonzero(owner == number)
        if len(own):
            found.append(Window(start, end, int(own[0]), int(own[-1]) + 1))
    return found


@dataclass(frozen=True)
class Pieces:
    """The words of a sentence in tokens.

    Attributes:
        ids: `[T]` int32.
        sizes: of each word, how many tokens it is.
        cut: whether a word had more than there is room for.
    """

    ids: Array
    sizes: list[int]
    cut: bool


def pieces_of(
    ids: Sequence[int], words: Sequence[int | None], count: int, room: int, unknown: int
) -> Pieces:
    """Tokens grouped by word.

    Args:
        ids: of a sentence, without special tokens.
        words: which word each token is of.
        count: how many words there are.
        room: the most tokens of a word; what is over it is cut.
        unknown: stands for a word that the tokenizer leaves nothing of (zero-width characters).
    """
    groups: list[list[int]] = [[] for _ in range(count)]
    for token, word in zip(ids, words, strict=True):
        if word is not None:
            groups[word].append(token)
    cut = any(len(group) > room for group in groups)
    kept = [group[:room] or [unknown] for group in groups]
    return Pieces(
        np.array([token for group in kept for token in group], dtype=np.int32),
        [len(group) for group in kept],
        cut,
    )


def around(tokenizer_example: Any) -> tuple[Array, Array]:
    """What a tokenizer puts before a single text and after it: `[CLS]` and `[SEP]`."""
    sources = tokenizer_example.sequence_ids
    ids = np.array(tokenizer_example.ids, dtype=np.int32)
    known = [i for i, source in enumerate(sources) if source == 0]
    return ids[: known[0]], ids[known[-1] + 1 :]
