"""Words of texts, and windows over sentences that are too long."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from pretune.data.arrays import Array
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.tokenizers.tokenizer import Tokenizer, tokens_around

#: Targets of a token: the word of its sentence that begins there, -1 if none that counts in the
#: window does; and the label of that word.
WORD, LABEL = "word", "label"
#: Targets of a window: whether the words that count in it begin, and end, the sentence.
BEGINS, ENDS = "begins", "ends"

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
#: Punctuation and symbols by Unicode that are parts of words all the same.
_OF_WORDS = frozenset("_@#$€£")
_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class _Letter:
    """A character with its combining marks, from one place of a text to another.

    `base` is the code point that the marks belong to; empty where there are only marks.
    """

    start: int
    end: int
    base: str

    @property
    def is_punctuation(self) -> bool:
        """Whether it is split off at the ends of a word; inside (U.S, AL-AIN) it is not."""
        kind = unicodedata.category(self.base)[0] if self.base else ""
        return kind in ("P", "S") and self.base not in _OF_WORDS


def _letters(text: str) -> list[_Letter]:
    """Split a text into characters, without spaces.

    Marks and format characters belong to the character before them; without one, to the one after.
    A joiner makes one character of two symbols.
    """
    letters: list[_Letter] = []
    for i, character in enumerate(text):
        if character.isspace():
            continue
        kind = unicodedata.category(character)
        base = "" if kind[0] == "M" or kind == "Cf" else character
        last = letters[-1] if letters and letters[-1].end == i else None
        joined = kind[0] == "S" and text[i - 1 : i] == _JOINER
        if last is not None and (not base or not last.base or joined):
            letters[-1] = _Letter(last.start, i + 1, last.base or base)
        else:
            letters.append(_Letter(i, i + 1, base))
    return letters


def _chunks(letters: Sequence[_Letter]) -> Iterator[Sequence[_Letter]]:
    """Yield what stands between spaces; each Chinese character by itself."""
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
    """Return the place of each word of a text: its first character, and the one after its last.

    With `characters` every character is a word, as in Chinese data; else only Chinese ones.
    """
    letters = _letters(text)
    if characters:
        return [(letter.start, letter.end) for letter in letters]
    words = []
    for chunk in _chunks(letters):
        # A word is what remains between punctuation, each mark of which is a word of its own.
        inside = [i for i, letter in enumerate(chunk) if not letter.is_punctuation]
        places = [(letter.start, letter.end) for letter in chunk]
        if inside:
            low, high = inside[0], inside[-1]
            places[low : high + 1] = [(chunk[low].start, chunk[high].end)]
        words += places
    return words


def words_of(records: Records, row: int, *, characters: bool) -> list[str]:
    """Return the words of a record: the list in `tokens`, or the words of the text there.

    Raises:
        DataError: `tokens` is neither a text nor a list of texts; names file and line.
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
class WordWindow:
    """A part of a sentence: words `start` to `end` are read, `first` to `stop` of them count.

    `end` and `stop` are the words after the last.
    """

    start: int
    end: int
    first: int
    stop: int


def word_windows(sizes: Sequence[int], room: int, overlap: int) -> list[WordWindow]:
    """Divide a sentence into windows; each word counts in the one with the most context around it.

    The context is the number of tokens before the word or after it, whichever is less (the "maximum
    context" of BERT's script for SQuAD); of equals the first window counts. A window in which no
    word counts is left out.

    Args:
        sizes: the number of tokens of each word, from 1 to `room`.
        room: the number of tokens of a window.
        overlap: the maximum number of tokens that a window shares with the next.
    """
    places = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))])
    count = len(sizes)

    def end_of(start: int) -> int:
        """Return the word after the last that fits into a window from the word `start`."""
        return int(np.searchsorted(places, places[start] + room, side="right")) - 1

    # The words of each window: as many as fit, from where the overlap with the one before begins.
    read = [(0, end_of(0))]
    while read[-1][1] < count:
        start, end = read[-1]
        shared = int(np.searchsorted(places, places[end] - overlap, side="left"))
        start = max(start + 1, min(shared, end))
        # A long word may not fit after the shared tokens: then fewer are shared.
        while end_of(start) <= end:
            start += 1
        read.append((start, end_of(start)))
    if len(read) == 1:
        return [WordWindow(0, count, 0, count)]
    # The window of each word.
    best = np.full(count, -1, dtype=np.int64)
    owner = np.zeros(count, dtype=np.int64)
    for number, (start, end) in enumerate(read):
        before = places[start:end] - places[start]
        after = places[end] - places[start + 1 : end + 1]
        context = np.minimum(before, after)
        better = context > best[start:end]
        best[start:end][better] = context[better]
        owner[start:end][better] = number
    windows = []
    for number, (start, end) in enumerate(read):
        own = np.flatnonzero(owner == number)
        if len(own):
            windows.append(WordWindow(start, end, int(own[0]), int(own[-1]) + 1))
    return windows


def tokens_by_word(
    encoding: Encoding, count: int, room: int, unknown: int
) -> tuple[Array, list[int], bool]:
    """Group the tokens of a sentence by its `count` words, each cut to `room` tokens.

    A word without a token (zero-width characters) gets the token `unknown`.

    Returns:
        `[T]` int32, the tokens; the number of tokens of each word; and whether a word was cut.
    """
    groups: list[list[int]] = [[] for _ in range(count)]
    for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
        if word is not None:
            groups[word].append(token)
    kept = [group[:room] or [unknown] for group in groups]
    tokens = np.array([token for group in kept for token in group], dtype=np.int32)
    return tokens, [len(group) for group in kept], any(len(group) > room for group in groups)


def special_tokens(tokenizer: Tokenizer) -> tuple[Array, Array]:
    """Return what the tokenizer puts before a text and after it, such as `[CLS]` and `[SEP]`."""
    before, after = (np.array(ids, dtype=np.int32) for ids in tokens_around(tokenizer))
    return before, after
