"""The right answers of records, and passages in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pretune.data.arrays import Array
from pretune.errors import CheckpointError, DataError
from pretune.text.chunks import split_text
from pretune.tokenizers.tokenizer import Tokenizer

#: Targets of a window: the first and the last token of the answer, counted in the window; 0, the
#: `[CLS]`, where the window has none; -1 where the answer's place is unknown.
START, END = "start", "end"
#: Targets of a window: the first token of the passage, and the one after its last.
PASSAGE, PASSAGE_END = "passage", "passage_end"
#: Targets of each token: its first character in the passage, and the one after its last; else 0.
FIRST_CHAR, END_CHAR = "first_char", "end_char"


@dataclass(frozen=True)
class Answer:
    """A right answer: its text, and its first character in the passage (-1: unknown)."""

    text: str
    start: int


def right_answers(row: Mapping[str, Any], where: str) -> list[Answer]:
    """Return the right answers of a record; none where the passage has none.

    Args:
        row: `answers` as in the Hub's SQuAD, `{"text": [...], "answer_start": [...]}`, or a list of
            `{"text": ..., "answer_start": ...}`; `is_impossible: true` overrules it.
        where: the record's place, for errors.

    Raises:
        DataError: `answers` has neither form.
    """
    given = row.get("answers")
    if row.get("is_impossible") is True or given is None:
        return []
    if isinstance(given, Mapping):
        texts: Any = given.get("text")
        starts = given.get("answer_start") or [-1] * len(texts or ())
        if _is_list(texts, str) and _is_list(starts, int) and len(texts) == len(starts):
            return [Answer(t, s) for t, s in zip(texts, starts, strict=True) if t]
    elif _is_list(given, Mapping):
        pairs = [(item.get("text"), item.get("answer_start", -1)) for item in given]
        if all(isinstance(t, str) and isinstance(s, int) for t, s in pairs):
            return [Answer(t, s) for t, s in pairs if t]
    raise DataError(
        f"{where}: these are no answers ({str(given)[:60]!r})",
        'Write {"text": ["..."], "answer_start": [17]}, with the answer\'s first character in the '
        "context, counted from 0; empty lists where there is no answer.",
    )


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


@dataclass(frozen=True)
class Frame:
    """The special tokens that the tokenizer puts around two texts.

    Attributes:
        before: token ids before the first text: `[CLS]`.
        between: token ids between the texts: `[SEP]`.
        after: token ids after the second text: `[SEP]`.
        segments: `[5]` of `before`, the first text, `between`, the second text, `after`.
    """

    before: Array
    between: Array
    after: Array
    segments: Array

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Read the frame from an example.

        Raises:
            CheckpointError: the tokenizer puts no token before a pair, or drops one of its texts.
        """
        example = tokenizer.engine.encode("a", "b")
        sources = example.sequence_ids
        if 0 not in sources or 1 not in sources or sources[0] is not None:
            raise CheckpointError(
                "the tokenizer makes no [CLS] question [SEP] passage [SEP] of two texts",
                "Question answering needs the tokenizer of BERT or a similar model.",
            )
        first, second = sources.index(0), sources.index(1)
        middle = len(sources) - sources[::-1].index(0)
        stop = len(sources) - sources[::-1].index(1)
        ids = np.array(example.ids, dtype=np.int32)
        kinds = np.array(example.type_ids, dtype=np.uint8)
        segments = kinds[[0, first, middle, second, min(stop, len(ids) - 1)]]
        return cls(ids[:first], ids[middle:second], ids[stop:], segments)


@dataclass(frozen=True)
class Passage:
    """A passage in tokens.

    Attributes:
        ids: `[N]` int32.
        first: `[N]` int32, the first character of each token.
        end: `[N]` int32, the character after the last of each token.
    """

    ids: Array
    first: Array
    end: Array

    def place(self, answer: Answer) -> tuple[int, int] | None:
        """Return the answer's first and last token; None if no token has any part of it."""
        first = int(np.searchsorted(self.end, answer.start, side="right"))
        last = int(np.searchsorted(self.first, answer.start + len(answer.text), side="left")) - 1
        return (first, last) if first <= last else None


def tokenize_passages(texts: Sequence[str], tokenizer: Tokenizer) -> list[Passage]:
    """Tokenize passages of any length in parallel; long ones chunk by chunk."""
    chunks = [list(split_text(text)) for text in texts]
    encoded = iter(tokenizer.encode_bare([chunk for parts in chunks for chunk in parts]))
    passages = []
    for parts in chunks:
        ids, offsets, base = [], [], 0
        for chunk in parts:
            encoding = next(encoded)
            ids.append(np.array(encoding.ids, dtype=np.int32))
            offsets.append(np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2) + base)
            base += len(chunk)
        first, end = np.ascontiguousarray(np.concatenate(offsets).T)
        passages.append(Passage(np.concatenate(ids), first, end))
    return passages


def window_starts(tokens: int, room: int, overlap: int) -> range:
    """Return where windows of `room` tokens begin, each sharing `overlap` tokens with the next.

    The last window may be shorter; a passage without tokens is one empty window.
    """
    step = room - overlap
    count = 1 + max(0, -(-(tokens - room) // step))
    return range(0, count * step, step)
