"""Sentences as windows of tokens in which the first piece of each word has its label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.data import Records
from pretune.errors import DataError

Array = NDArray[Any]

#: Targets of a token: which word of its sentence begins there (-1: none that counts in this
#: window); and its label.
WORD, LABEL = "word", "label"
#: Targets of a window: whether the words that count in it are the first, the last of the sentence.
BEGINS, ENDS = "begins", "ends"

_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHUNK = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
#: Punctuation at the ends of a chunk is words of its own; inside (U.S, AL-AIN) it is not.
_AROUND = re.compile(r"[^\w@#$€£]")


def split_words(text: str, *, characters: bool = False) -> list[tuple[int, int]]:
    """The words of a text: the first character of each, and the one after its last.

    Args:
        text: any.
        characters: whether every character is a word, as in Chinese data; else only Chinese ones.
    """
    if characters:
        return [(i, i + 1) for i, character in enumerate(text) if not character.isspace()]
    found = []
    for match in _CHUNK.finditer(text):
        start, end = match.span()
        while start < end and _AROUND.match(text, start):
            found.append((start, start + 1))
            start += 1
        after = end
        while after > start and _AROUND.match(text, after - 1):
            after -= 1
        if start < after:
            found.append((start, after))
        found += [(i, i + 1) for i in range(after, end)]
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
