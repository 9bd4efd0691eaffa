"""Questions and passages as windows of tokens, with the places of the answers in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Skipped
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError
from pretune.tasks.question_answering.options import AnswerOptions
from pretune.text.chunks import split_text
from pretune.tokenizers.tokenizer import Tokenizer

#: Targets of a window: the first and the last token of the answer, counted in the window (0, the
#: `[CLS]`, where it has none; -1 where nobody knows).
START, END = "start", "end"
#: Where the passage begins in the window, and the token after it.
PASSAGE, PASSAGE_END = "passage", "passage_end"
#: Of each token: its first character in the passage, and the one after its last; else 0.
FIRST_CHAR, END_CHAR = "first_char", "end_char"


@dataclass(frozen=True)
class Answer:
    """A right answer: its text, and at which character of the passage it begins (-1: not said)."""

    text: str
    start: int


def right_answers(row: Mapping[str, Any], where: str) -> list[Answer]:
    """The right answers of a record; none where the passage has none.

    Args:
        row: `answers` as the Hub's SQuAD has it, `{"text": [...], "answer_start": [...]}`, or a
            list of `{"text": ..., "answer_start": ...}`; `is_impossible: true` overrules it.
        where: to name in an error.

    Raises:
        DataError: it is neither.
    """
    given = row.get("answers")
    if row.get("is_impossible") is True or given is None:
        return []
    if isinstance(given, Mapping):
        texts = given.get("text")
        starts = given.get("answer_start") or [-1] * len(texts or ())
        known = _listed(texts, str) and _listed(starts, int)
        if known and texts is not None and len(texts) == len(starts):
            return [Answer(t, s) for t, s in zip(texts, starts, strict=True) if t]
    elif _listed(given, Mapping):
        found = [(item.get("text"), item.get("answer_start", -1)) for item in given]
        if all(isinstance(t, str) and isinstance(s, int) for t, s in found):
            return [Answer(t, s) for t, s in found if t]
    raise DataError(
        f"{where}: these are no answers ({str(given)[:60]!r})",
        'Write {"text": ["..."], "answer_start": [17]}, with the answer\'s first character in the '
        "context, counted from 0; empty lists where there is no answer.",
    )


def _listed(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


@dataclass(frozen=True)
class Frame:
    """What the tokenizer puts around a pair of texts, and between them.

    Attributes:
        before: token ids ahead of the first text: `[CLS]`.
        between: the two texts: `[SEP]`.
        after: the second text: `[SEP]`.
        segments: of the five parts.
    """

    before: Array
    between: Array
    after: Array
    segments: Array

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """By an example.

        Raises:
            CheckpointError: the tokenizer puts nothing in front of a pair, or loses a text of it.
        """
        example = tokenizer.engine.encode("a", "b")
        sources = example.sequence_ids
        if 0 not in sources or 1 not in sources or sources[0] is not None:
            raise CheckpointError(
                "the tokenizer makes no [CLS] question [SEP] passage [SEP] of two texts",
                "Questions can be answered by BERT and its kin only.",
            )
        first, second = sources.index(0), sources.index(1)
        middle = len(sources) - sources[::-1].index(0)
        stop = len(sources) - sources[::-1].index(1)
        ids = np.array(example.ids, dtype=np.int32)
        kinds = np.array(example.type_ids, dtype=np.uint8)
        of_parts = kinds[[0, first, middle, second, min(stop, len(ids) - 1)]]
        return cls(ids[:first], ids[middle:second], ids[stop:], of_parts)

    @property
    def size(self) -> int:
        """How many tokens it is."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class Passage:
    """A passage in tokens.

    Attributes:
        ids: `[N]` int32.
        first: `[N]` int32: the first character of each token; and
        end: `[N]` int32: the character after its last.
    """

    ids: Array
    first: Array
    end: Array

    def place(self, answer: Answer) -> tuple[int, int] | None:
        """The answer's first and last token; None if no token has any of it."""
        first = int(np.searchsorted(self.end, answer.start, side="right"))
        last = int(np.searchsorted(self.first, answer.start + len(answer.text), side="left")) - 1
        return (first, last) if first <= last else None


def passages(texts: Sequence[str], tokenizer: Tokenizer) -> list[Passage]:
    """Passages of any length in tokens, in parallel; long ones piece by piece."""
    cut = [list(split_text(text)) for text in texts]
    encoded = iter(tokenizer.encode_bare([piece for parts in cut for piece in parts]))
    found = []
    for parts in cut:
        ids, places, base = [], [], 0
        for piece in parts:
            encoding = next(encoded)
            ids.append(np.array(encoding.ids, dtype=np.int32))
            places.append(np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2) + base)
            base += len(piece)
        both = np.concatenate(places)
        found.append(
            Passage(
                np.concatenate(ids),
                np.ascontiguousarray(both[:, 0]),
                np.ascontiguousarray(both[:, 1]),
            )
        )
    return found


def window_starts(tokens: int, room: int, overlap: int) -> range:
    """Where windows of `room` tokens begin that share `overlap` with the next, up to the end.

    The last one may be shorter; a passage without tokens is one empty window.
    """
    step = room - overlap
    count = 1 + max(0, -(-(tokens - room) // step))
    return range(0, count * step, step)


@dataclass(frozen=True)
class WindowMaker:
    """Turns records into windows.

    Attributes:
        options: lengths.
        tokenizer: of the model.
        learn: give `START` and `END`, of the first right answer whose place is right.
        skip: pass over records whose answers are at no place they name; else their windows say -1.
        places: give `FIRST_CHAR` and `END_CHAR`, to find the text of an answer by.
    """

    options: AnswerOptions
    tokenizer: Tokenizer
    learn: bool
    skip: bool
    places: bool

    def windows(self, records: Records, rows: range) -> Iterator[Feature | Skipped]:
        """The windows of these records, in order; each distinct passage is tokenized once.

        Raises:
            DataError: a text or an answer is missing or of another kind; or there is no answer,
                and the options say nothing of that.
        """
        frame = Frame.of(self.tokenizer)
        texts: dict[str, int] = {}
        which = [texts.setdefault(records.text(row, "context"), len(texts)) for row in rows]
        questions = [records.text(row, "question") for row in rows]
        read = passages(list(texts), self.tokenizer)
        asked = self.tokenizer.encode_bare(questions, offsets=False)
        for row, number, question in zip(rows, which, asked, strict=True):
            passage = read[number]
            span = self._span(records, row, passage) if self.learn else None
            if isinstance(span, Skipped):
                if self.skip:
                    yield span
                    continue
                span = (-1, -1)
            ids = np.array(question.ids, dtype=np.int32)
            yield from self._cut(frame, ids, passage, span, row)

    def _span(self, records: Records, row: int, passage: Passage) -> tuple[int, int] | Skipped:
        """The first and last token of the answer in the passage; (0, -1) where there is none."""
        where = records.where(row, "answers")
        answers = right_answers(records.rows[row], where)
        if not answers:
            if not self.options.no_answer:
                raise DataError(
                    f"{where}: the question has no answer there",
                    "task.no_answer=true is for such data (SQuAD 2.0); or remove the record.",
                )
            return 0, -1
        context = records.text(row, "context")
        for answer in answers:
            if answer.start >= 0 and context.startswith(answer.text, answer.start):
                found = passage.place(answer)
                if found is not None:
                    return found
        first = answers[0]
        if first.start < 0:
            return Skipped(row, f"no answer_start for {first.text[:40]!r}")
        there = context[first.start : first.start + len(first.text)]
        return Skipped(
            row, f"at answer_start {first.start} there is {there[:40]!r}, not {first.text[:40]!r}"
        )

    def _cut(
        self,
        frame: Frame,
        question: Array,
        passage: Passage,
        span: tuple[int, int] | None,
        row: int,
    ) -> Iterator[Feature]:
        most, options = self.options.max_question_length, self.options
        cut = len(question) > most
        head = np.concatenate([frame.before, question[:most], frame.between])
        room = options.max_length - len(head) - len(frame.after)
        kinds = frame.segments
        sizes = [len(frame.before), len(head) - len(frame.before) - len(frame.between)]
        start_of_passage = len(head)
        for start in window_starts(len(passage.ids), room, options.doc_stride):
            part = slice(start, start + room)
            ids = passage.ids[part]
            stop = start_of_passage + len(ids)
            targets: dict[str, Any] = {PASSAGE: start_of_passage, PASSAGE_END: stop}
            if span is not None:
                inside = start <= span[0] <= span[1] < start + len(ids)
                shift = start_of_passage - start
                unknown = min(span[0], 0)  # -1 stays -1, what is not in the window becomes 0
                targets[START] = span[0] + shift if inside else unknown
                targets[END] = span[1] + shift if inside else unknown
            lengths = [*sizes, len(frame.between), len(ids), len(frame.after)]
            if self.places:
                for name, column in ((FIRST_CHAR, passage.first), (END_CHAR, passage.end)):
                    chars = np.zeros(stop + len(frame.after), dtype=np.int32)
                    chars[start_of_passage:stop] = column[part]
                    targets[name] = chars
            yield Feature(
                tokens=np.concatenate([head, ids, frame.after]),  # type: ignore[arg-type]
                segments=np.repeat(kinds, lengths),  # type: ignore[arg-type]
                targets=targets,
                record=row,
                truncated=cut,
            )
