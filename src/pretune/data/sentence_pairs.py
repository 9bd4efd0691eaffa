"""Pairs of segments for next-sentence and sentence-order prediction.

A record is a document; a segment is one or more of its sentences (Devlin et al. 2019, appendix
A.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Generic, Literal, Protocol, Self, TypeVar

import numpy as np

from pretune.data.arrays import Array
from pretune.data.masking import PAIR_STREAM, RandomStreams, Segmenter, word_numbers
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.text.sentence_ends import sentence_spans
from pretune.tokenizers.tokenizer import Tokenizer

#: Documents kept in memory, for the random segments that are taken from them.
KEPT = 256


@dataclass(frozen=True)
class SentenceTokens:
    """The tokens of a text, or of a part, without special tokens."""

    ids: Array  # `[n]` int32
    words: Array  # `[n]` int32: the number of each token's word in the text

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice) -> SentenceTokens:
        return SentenceTokens(self.ids[which], self.words[which])

    @classmethod
    def join(cls, parts: Sequence[SentenceTokens]) -> SentenceTokens:
        """Join parts end to end; the numbers of words go on."""
        shift, words = 0, []
        for part in parts:
            words.append(part.words + shift)
            shift += int(part.words[-1]) + 1 if len(part) else 0
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate(words))


def tokenize_sentences(
    texts: Sequence[str], tokenizer: Tokenizer, segment: Segmenter | None
) -> list[SentenceTokens]:
    """Tokenize texts in parallel, whole and without special tokens.

    The name of a special token in a text is text, as in a prepared corpus. A segmenter finds words
    that the tokenizer does not, as in Chinese.
    """
    encodings = tokenizer.encode_bare(texts, literal=True)
    return [
        SentenceTokens(
            np.array(encoding.ids, dtype=np.int32), word_numbers(encoding, text, segment)
        )
        for encoding, text in zip(encodings, texts, strict=True)
    ]


class LazySentences:
    """The sentences of a text, each tokenized on first use."""

    def __init__(self, text: str, encode: Callable[[Sequence[str]], list[SentenceTokens]]) -> None:
        self._texts, self._encode = [text[start:end] for start, end in sentence_spans(text)], encode
        self._known: list[SentenceTokens | None] = [None] * len(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> SentenceTokens:
        sentence = self._known[number]
        if sentence is None:
            (sentence,) = self._encode([self._texts[number]])
            self._known[number] = sentence
        return sentence

    def all(self) -> list[SentenceTokens]:
        """All sentences that have tokens."""
        missing = [number for number, known in enumerate(self._known) if known is None]
        encoded = self._encode([self._texts[number] for number in missing])
        for number, sentence in zip(missing, encoded, strict=True):
            self._known[number] = sentence
        return [sentence for sentence in self._known if sentence is not None and len(sentence)]


class RecordDocuments:
    """Records as documents, from their column `text`."""

    def __init__(
        self, records: Records, tokenizer: Tokenizer, segment: Segmenter | None = None
    ) -> None:
        def read(row: int) -> LazySentences:
            encode = partial(tokenize_sentences, tokenizer=tokenizer, segment=segment)
            return LazySentences(records.text(row, "text"), encode)

        self.origin, self._records = records.origin, records
        self.document = lru_cache(KEPT)(read)

    def __len__(self) -> int:
        return len(self._records)


class TokenRun(Protocol):
    """Tokens of a document that follow each other: the ids, or their place in a corpus."""

    def __len__(self) -> int: ...

    def __getitem__(self, which: slice, /) -> Self: ...

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join runs that follow each other."""


P = TypeVar("P", bound=TokenRun)
P_co = TypeVar("P_co", bound=TokenRun, covariant=True)


class SentenceList(Protocol[P_co]):
    """The sentences of a document."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> P_co: ...

    def all(self) -> Sequence[P_co]:
        """All sentences that have tokens."""


class DocumentSource(Protocol[P_co]):
    """The documents that pairs are made from."""

    @property
    def origin(self) -> str:
        """The file or corpus, as errors name it."""

    def __len__(self) -> int: ...

    def document(self, row: int, /) -> SentenceList[P_co]:
        """The sentences of a document, by its number."""


@dataclass(frozen=True)
class SegmentPair(Generic[P]):
    """Two segments and the label of their relation."""

    first: P  # the segment with id 0
    second: P  # the segment with id 1
    # For nsp, 0 if the second follows the first, 1 if it is from another document; for sop, 0 if
    # they are in order, 1 if they are swapped. transformers uses the same numbers.
    label: int


class PairMaker(Generic[P]):
    """Makes the pairs of documents, the same pairs each time.

    Args:
        documents: to take segments from.
        kind: how half of the second segments are replaced: `nsp`, by one from another document;
            `sop`, by swapping the two (Lan et al. 2020, section 3.1).
        room: the most tokens of a pair, at least 2.
        short: the share of pairs that aim at a random smaller number of tokens.
    """

    def __init__(
        self,
        documents: DocumentSource[P],
        *,
        kind: Literal["nsp", "sop"],
        room: int,
        short: float = 0.1,
    ) -> None:
        self._documents, self._kind, self._room, self._short = documents, kind, room, short

    def pairs(self, row: int, copy: int = 0) -> Iterator[SegmentPair[P]]:
        """Make the pairs of a document (Devlin et al. 2019, appendix A.2).

        A last sentence that is left alone makes no pair, because nothing follows it. Both labels
        are therefore equally likely, whatever the documents are. Each `copy` splits differently.

        Raises:
            DataError: `nsp`, and no other document has any text.
        """
        stream = RandomStreams(0, copy, PAIR_STREAM).at(row)
        parts = self._documents.document(row).all()
        begin = 0
        while begin < len(parts) - 1:
            target = self._room
            if stream.random() < self._short:
                target = int(stream.integers(2, self._room + 1))
            # Gather sentences until they fill the room, and cut between two of them.
            end = _gather(parts, begin, target)
            middle = int(stream.integers(begin + 1, end))
            join = type(parts[0]).join
            first, second = join(parts[begin:middle]), parts[middle:end]
            # Half of the second segments are replaced. For nsp the sentences that a random segment
            # pushed aside begin the next pair.
            other = bool(stream.random() < 0.5)
            begin = end
            if other and self._kind == "nsp":
                begin = middle
                second = self._elsewhere(row, target - len(first), stream)
            yield self._pair(first, join(second), int(other))

    def _pair(self, first: P, second: P, label: int) -> SegmentPair[P]:
        """Cut a pair to the room at its far ends, so that neighbours stay neighbours."""
        left, right = _fit(len(first), len(second), self._room)
        first, second = first[len(first) - left :], second[:right]
        if label and self._kind == "sop":
            first, second = second, first
        return SegmentPair(first, second, label)

    def _elsewhere(self, row: int, wanted: int, stream: np.random.Generator) -> list[P]:
        """Sentences from a random place in a random other document that has text."""
        others = len(self._documents) - 1
        start = int(stream.integers(others)) if others else 0
        for step in range(others):
            document = self._documents.document((row + 1 + (start + step) % others) % (others + 1))
            chosen: list[P] = []
            first = int(stream.integers(len(document))) if len(document) else 0
            for number in range(first, len(document)):
                chosen.append(document[number])
                if sum(map(len, chosen)) >= wanted:
                    break
            if any(map(len, chosen)):
                return chosen
        raise DataError(
            f"{self._documents.origin}: no two records have text, so no segment can come from "
            "another document",
            "A record is a document (task.next=nsp); task.next=sop or none needs only one.",
        )


def _gather(sentences: Sequence[TokenRun], begin: int, target: int) -> int:
    """Where to stop for at least `target` tokens and two sentences."""
    end, total = begin, 0
    while end < len(sentences) and (total < target or end < begin + 2):
        total += len(sentences[end])
        end += 1
    return end


def _fit(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each segment to keep: the longer segment gives way first."""
    half = room // 2
    if first + second <= room:
        return first, second
    if first <= half:
        return first, room - first
    if second <= room - half:
        return room - second, second
    return half, room - half
