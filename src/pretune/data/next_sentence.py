"""Pairs of segments for next-sentence and sentence-order prediction.

A record is a document; a segment is one or more of its sentences (Devlin et al. 2019, appendix
A.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pretune.data.mask import PAIRS, Streams
from pretune.data.read import Records
from pretune.data.words import Segmenter, word_numbers
from pretune.errors import DataError
from pretune.text import Tokenizer

Array = NDArray[Any]

#: Documents from which random segments were taken lately.
KEPT = 256
_END = re.compile(
    r"(?<=[。！？；…])(?![。！？；…”’」』）)\"'])"  # Chinese: no space follows
    r"|(?<=[。！？；…][”’」』）)\"'])(?![”’」』）)\"'])"
    r"|(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+"
    r"|\s*\n\s*"
)


def split_sentences(text: str) -> list[str]:
    """Sentences by their punctuation, English and Chinese, and by line ends; none is empty."""
    return [part for part in (piece.strip() for piece in _END.split(text)) if part]


@dataclass(frozen=True)
class Tokens:
    """Some tokens of a text, without special ones.

    Attributes:
        ids: `[n]` int32.
        words: `[n]` int32: which word of the text each belongs to.
    """

    ids: Array
    words: Array

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice) -> Tokens:
        return Tokens(self.ids[which], self.words[which])

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """End to end; words are counted on."""
        shift, words = 0, []
        for part in parts:
            words.append(part.words + shift)
            shift += int(part.words[-1]) + 1 if len(part) else 0
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate(words))


def encode_all(
    texts: Sequence[str], tokenizer: Tokenizer, segment: Segmenter | None
) -> list[Tokens]:
    """The tokens of texts, whole and without special tokens, tokenized in parallel."""
    encodings = tokenizer.engine.encode_batch(list(texts), add_special_tokens=False)
    return [
        Tokens(np.array(one.ids, dtype=np.int32), word_numbers(one, text, segment))
        for one, text in zip(encodings, texts, strict=True)
    ]


class Document:
    """The sentences of a text, tokenized when they are asked for."""

    def __init__(self, text: str, encode: Callable[[Sequence[str]], list[Tokens]]) -> None:
        self._texts, self._encode = split_sentences(text), encode
        self._known: list[Tokens | None] = [None] * len(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> Tokens:
        found = self._known[number]
        if found is None:
            (found,) = self._encode([self._texts[number]])
            self._known[number] = found
        return found

    def all(self) -> list[Tokens]:
        """All sentences that have tokens."""
        missing = [number for number, known in enumerate(self._known) if known is None]
        found = self._encode([self._texts[number] for number in missing])
        for number, sentence in zip(missing, found, strict=True):
            self._known[number] = sentence
        return [sentence for sentence in self._known if sentence is not None and len(sentence)]


@dataclass(frozen=True)
class Pair:
    """Two segments.

    Attributes:
        first: with the segment id 0.
        second: with the segment id 1.
        label: nsp: 0 if the second follows the first, 1 if it is from another document; sop: 0 if
            they are in their order, 1 if they are swapped. As transformers numbers them.
    """

    first: Tokens
    second: Tokens
    label: int


class PairMaker:
    """Makes pairs of the documents of some records, the same ones at each time.

    Args:
        records: the documents, in the column `text`.
        tokenizer: of the model.
        kind: what the second segment is besides the next one: `nsp`: from another document; `sop`:
            the one before (Lan et al. 2020, section 3.1).
        room: the most tokens of a pair, at least 2.
        short: this share of pairs aims at a random smaller number of tokens.
        segment: finds words.
    """

    def __init__(
        self,
        records: Records,
        tokenizer: Tokenizer,
        *,
        kind: Literal["nsp", "sop"],
        room: int,
        short: float = 0.1,
        segment: Segmenter | None = None,
    ) -> None:
        self._records, self._kind, self._room, self._short = records, kind, room, short
        self._encode: Callable[[Sequence[str]], list[Tokens]] = lambda texts: encode_all(
            texts, tokenizer, segment
        )
        self._document = lru_cache(KEPT)(self._read)

    def _read(self, row: int) -> Document:
        return Document(self._records.text(row, "text"), self._encode)

    def pairs(self, row: int, copy: int = 0) -> Iterator[Pair]:
        """The pairs of a document; each copy splits it otherwise.

        Sentences are gathered until they fill the room, and cut in two between two of them; by
        even odds the second part gives way to another one. What a random segment pushed aside
        begins the next pair. A sentence left alone makes no pair, as nothing follows it: so both
        labels are equally likely, whatever the documents are like.

        Raises:
            DataError: `nsp`, and no other document has any text.
        """
        stream = Streams(0, copy, PAIRS).at(row)
        sentences = self._document(row).all()
        begin = 0
        while begin < len(sentences) - 1:
            target = self._room
            if stream.random() < self._short:
                target = int(stream.integers(2, self._room + 1))
            end = _gather(sentences, begin, target)
            middle = int(stream.integers(begin + 1, end))
            first, second = Tokens.join(sentences[begin:middle]), sentences[middle:end]
            other = bool(stream.random() < 0.5)
            begin = end
            if other and self._kind == "nsp":
                begin = middle
                second = self._elsewhere(row, target - len(first), stream)
            yield self._pair(first, Tokens.join(second), int(other))

    def _pair(self, first: Tokens, second: Tokens, label: int) -> Pair:
        """Cut to the room: from the far ends, so that what was next to each other stays so."""
        left, right = _fit(len(first), len(second), self._room)
        first, second = first[len(first) - left :], second[:right]
        if label and self._kind == "sop":
            first, second = second, first
        return Pair(first, second, label)

    def _elsewhere(self, row: int, wanted: int, stream: np.random.Generator) -> list[Tokens]:
        """Sentences from a random place of a random other document."""
        others = len(self._records) - 1
        start = int(stream.integers(others)) if others else 0
        for step in range(others):
            document = self._document((row + 1 + (start + step) % others) % (others + 1))
            found: list[Tokens] = []
            first = int(stream.integers(len(document))) if len(document) else 0
            for number in range(first, len(document)):
                found.append(document[number])
                if sum(map(len, found)) >= wanted:
                    break
            if any(map(len, found)):
                return found
        raise DataError(
            f"{self._records.origin}: no two records have text, so no segment can come from "
            "another document",
            "A record is a document (task.next=nsp); task.next=sop or none needs only one.",
        )


def _gather(sentences: Sequence[Tokens], begin: int, target: int) -> int:
    """Where to stop so that there are `target` tokens, and two sentences."""
    end, total = begin, 0
    while end < len(sentences) and (total < target or end < begin + 2):
        total += len(sentences[end])
        end += 1
    return end


def _fit(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of each to keep: the longer one gives way first."""
    half = room // 2
    if first + second <= room:
        return first, second
    if first <= half:
        return first, room - first
    if second <= room - half:
        return room - second, second
    return half, room - half
