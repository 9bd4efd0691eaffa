"""`answer`: extractive question answering, the span of a passage that answers a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.checkpoints.config import THRESHOLD
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, FeatureSet, PackedBatch, Skipped
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError, WrongValueError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import (
    Calibrated,
    Loss,
    Prediction,
    ReadsWindows,
    Task,
    TaskOptions,
    usual_length,
)
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.distillation.teachable import Comparison, Teachable
from pretune.tasks.grading import Decision, EachLoss, Grade, Mistake
from pretune.tasks.labels import finite
from pretune.tasks.question_answering import windows
from pretune.tasks.question_answering.scores import NullThreshold, best_null_threshold, comparison
from pretune.tasks.question_answering.windows import Answer, Frame, Passage, WindowSpans
from pretune.tokenizers.tokenizer import Tokenizer

#: The special tokens of `[CLS] question [SEP] passage [SEP]`.
SPECIAL = 3
#: How the answer that there is none is shown.
NO_ANSWER = "(no answer)"


class AnswerOptions(TaskOptions):
    """Options of `answer`."""

    name: Literal["answer"] = Field(
        "answer", description="The span of a passage that answers a question."
    )
    max_length: int = Field(
        384,
        ge=8,
        description="The maximum number of tokens of a window: the question and a part of the "
        "passage. A longer passage is read in several windows.",
    )
    doc_stride: int = Field(
        128,
        ge=0,
        description="How many tokens of the passage two neighbouring windows share "
        "(transformers' stride).",
    )
    max_question_length: int = Field(
        64, ge=1, description="The maximum number of tokens of a question; longer ones are cut."
    )
    max_answer_length: int = Field(
        30, ge=1, description="The maximum number of tokens of an answer."
    )
    no_answer: bool = Field(
        False,
        description="Whether a passage may hold no answer (SQuAD 2.0). The threshold for giving "
        "none is chosen on the validation data and saved with the model.",
    )
    n_best: int = Field(20, ge=1, description="How many spans share the probability.")
    match: Literal["auto", "words", "characters"] = Field(
        "auto",
        description="How answers are compared with the right ones: by words, as in SQuAD, or by "
        "Chinese characters, as in CMRC 2018. auto: by characters if more than half of the "
        "records have Chinese answers.",
    )

    @model_validator(mode="after")
    def _room(self) -> Self:
        room = self.max_length - self.max_question_length - SPECIAL
        if room <= self.doc_stride:
            # Where no token is left, no doc_stride would do.
            way_out = (
                f"doc_stride must be less (it is {self.doc_stride})"
                if room > 0
                else "max_length must be more, or max_question_length less"
            )
            raise WrongValueError(
                f"with max_length: {self.max_length} and max_question_length: "
                f"{self.max_question_length} a window has room for {max(room, 0)} tokens of the "
                f"passage, so {way_out}"
            )
        if self.no_answer and self.match == "characters":
            raise WrongValueError(
                "match: characters is CMRC 2018's, where every question has an answer"
            )
        return self

    @classmethod
    def of_length(cls, length: int, *, no_answer: bool = False) -> Self:
        """Return the default options, adapted to windows of `length` tokens."""
        question = min(64, length // 4)
        stride = min(128, (length - question - SPECIAL) // 2)
        return cls(
            max_length=length, max_question_length=question, doc_stride=stride, no_answer=no_answer
        )


@dataclass(frozen=True)
class AnswerSpan:
    """A possible answer: its text, its probability, its first character and the one after it."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class AnswerPrediction(Prediction):
    """The answer to a question.

    Attributes:
        answer: its text; empty where there is none.
        score: its probability among the `n_best` spans and, where that is possible, no answer.
        start: its first character in the passage, from 0; None where there is no answer.
        end: the character after its last.
        candidates: the best spans, whether or not the answer is among them.
        no_answer: the probability that there is none; None where there always is an answer.
        null_odds: the score of no answer minus that of the best span (each a sum of two logits).
    """

    answer: str
    score: float
    start: int | None
    end: int | None
    candidates: tuple[AnswerSpan, ...] = ()
    no_answer: float | None = None
    null_odds: float | None = None

    @override
    def to_dict(self) -> dict[str, Any]:
        entries = asdict(self)
        optional = ("candidates", "no_answer", "null_odds")
        return {k: v for k, v in entries.items() if k not in optional or v not in (None, ())}

    @override
    def ranked(self) -> list[tuple[str, float]]:
        spans = list(self.candidates)
        if self.start is not None and self.end is not None:
            first = AnswerSpan(self.answer, self.score, self.start, self.end)
            spans = [first, *(span for span in spans if span != first)]
        lines = [(f"{span.answer}  [{span.start}:{span.end}]", span.score) for span in spans]
        return [(NO_ANSWER, self.score), *lines] if self.start is None else lines

    @override
    def top(self, count: int | None) -> Self:
        """Keep `count` candidates; by default none but the answer."""
        return replace(self, candidates=() if count in (None, 1) else self.candidates[:count])


class Answerer(
    Task[AnswerOptions, AnswerPrediction], Calibrated, HasCertainty, ReadsWindows, Teachable
):
    """Two logits for each token, of being the first and the last of the answer (BERT, section 4.2).

    Only tokens of the passage can be the answer; `[CLS]` stands for no answer. A passage that is
    longer than a window is read in several; windows without the answer are trained on `[CLS]`.

    Attributes:
        threshold: no answer is given where `null_odds` is above it.
    """

    name: ClassVar[str] = "answer"
    options_type: ClassVar[type[TaskOptions]] = AnswerOptions
    head: ClassVar[str] = "question_answering"
    best_by: ClassVar[str] = "f1"
    inputs: ClassVar[dict[str, str]] = {
        "question": "a question",
        "context": "a passage that holds the answer",
    }
    targets: ClassVar[dict[str, str]] = {
        "answers": 'its answers: {"text": [...], "answer_start": [...]}'
    }
    optional: ClassVar[dict[str, str]] = {
        "id": "the question's own name",
        "is_impossible": "true where the passage has no answer",
        "title": "of the article, for people",
    }
    shown: ClassVar[tuple[str, ...]] = ("id", "question")  # the passage may be a book
    kept_together: ClassVar[tuple[str, ...]] = ("context",)  # else training would know the passages

    def __init__(self, options: AnswerOptions, threshold: float = 0.0) -> None:
        super().__init__(options)
        self.threshold = threshold

    # Preprocessor

    @property
    @override
    def truncation_note(self) -> str:
        return f"had a question of over {self.options.max_question_length} tokens, which was cut"

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterator[Feature | Skipped]:
        """Yield the windows; records without an answer at its `answer_start` are skipped."""
        return self._features(
            *(records, rows, tokenizer), learn=with_targets, offsets=not with_targets
        )

    @override
    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterator[Feature | Skipped]:
        """Yield the windows of all records: an answer's text is right wherever it begins."""
        return self._features(records, rows, tokenizer, learn=True, offsets=True)

    def _features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, learn: bool, offsets: bool
    ) -> Iterator[Feature | Skipped]:
        """Yield the windows of records, in order.

        `learn` adds `START` and `END` of the first right answer whose place is right; `offsets`
        adds `FIRST_CHAR` and `END_CHAR`, from which the texts of answers are read. Windows with
        both are for evaluation: no record is skipped.
        """
        frame = Frame.of(tokenizer)
        # Many questions are about the same passage, which is tokenized once.
        numbers: dict[str, int] = {}
        which = [numbers.setdefault(records.text(row, "context"), len(numbers)) for row in rows]
        asked = [records.text(row, "question") for row in rows]
        passages = windows.tokenize_passages(list(numbers), tokenizer)
        questions = tokenizer.encode_bare(asked, offsets=False)
        for row, number, question in zip(rows, which, questions, strict=True):
            passage = passages[number]
            span = self._answer_tokens(records, row, passage) if learn else None
            if isinstance(span, Skipped):
                if not offsets:
                    yield span
                    continue
                span = (-1, -1)
            ids = np.array(question.ids, dtype=np.int32)
            for tokens, segments, targets in self._windows(frame, ids, passage, span, offsets):
                cut = len(ids) > self.options.max_question_length
                yield Feature(tokens, segments, targets, row, cut)  # type: ignore[arg-type]

    @override
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        for column in self.inputs:
            records.text(row, column)
        if with_targets and not self.without_text(records.rows[row], with_targets=True):
            self._right_answers(records, row)

    def _right_answers(self, records: Records, row: int) -> list[Answer]:
        """Return the right answers of a record; a DataError where it must have one and has none."""
        where = records.where(row, "answers")
        answers = windows.right_answers(records.rows[row], where)
        if not answers and not self.options.no_answer:
            raise DataError(
                f"{where}: the question has no answer there",
                "task.no_answer=true is for such data (SQuAD 2.0); or remove the record.",
            )
        return answers

    def _answer_tokens(
        self, records: Records, row: int, passage: Passage
    ) -> tuple[int, int] | Skipped:
        """Return the answer's first and last token in the passage; (0, -1): there is none.

        Raises:
            DataError: the answers are none, or there is none and `no_answer` is not set.
        """
        answers = self._right_answers(records, row)
        if not answers:
            return 0, -1
        # The first answer that stands where its `answer_start` says.
        context = records.text(row, "context")
        for answer in answers:
            if answer.start >= 0 and context.startswith(answer.text, answer.start):
                place = passage.place(answer)
                if place is not None:
                    return place
        first = answers[0]
        if first.start < 0:
            return Skipped(row, f"no answer_start for {first.text[:40]!r}")
        there = context[first.start : first.start + len(first.text)]
        return Skipped(
            row, f"at answer_start {first.start} there is {there[:40]!r}, not {first.text[:40]!r}"
        )

    def _windows(
        self,
        frame: Frame,
        question: Array,
        passage: Passage,
        span: tuple[int, int] | None,
        offsets: bool,
    ) -> Iterator[tuple[Array, Array, dict[str, Any]]]:
        """Yield the tokens, the segments and the targets of each window."""
        question = question[: self.options.max_question_length]
        head = np.concatenate([frame.before, question, frame.between])
        room = self.options.max_length - len(head) - len(frame.after)
        for start in windows.window_starts(len(passage.ids), room, self.options.doc_stride):
            part = slice(start, start + room)
            ids = passage.ids[part]
            low, high = len(head), len(head) + len(ids)
            targets: dict[str, Any] = {windows.PASSAGE: low, windows.PASSAGE_END: high}
            if span is not None:
                # A window without the whole answer points to its first token, `[CLS]`; an answer
                # whose place is unknown stays -1.
                inside = start <= span[0] <= span[1] < start + len(ids)
                for name, token in zip((windows.START, windows.END), span, strict=True):
                    targets[name] = token + low - start if inside else min(span[0], 0)
            if offsets:
                for name, column in (
                    (windows.FIRST_CHAR, passage.first),
                    (windows.END_CHAR, passage.end),
                ):
                    targets[name] = np.zeros(high + len(frame.after), dtype=np.int32)
                    targets[name][low:high] = column[part]
            parts = (frame.before, question, frame.between, ids, frame.after)
            segments = np.repeat(frame.segments, [len(part) for part in parts])
            yield np.concatenate(parts), segments, targets

    # Head

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, "question_answering")

    @override
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Compute the mean of the cross-entropies of start and end, counted in windows."""
        sums, known = windows.span_loss(outputs, batch, windows.allowed(batch))
        return Loss(sums.sum(), int(known.sum()))

    # Learning from a teacher

    @override
    def soften(self, outputs: Tensor, batch: PackedBatch, temperature: float) -> Tensor:
        """Return the probability of each token of being the first and the last, `[T, 2]`."""
        return windows.span_log_probs(outputs / temperature, batch).exp()

    @override
    def compare(
        self, outputs: Tensor, soft: Tensor, batch: PackedBatch, temperature: float
    ) -> Comparison:
        """Compare windows: the mean of the KLs of start and end; they agree where both do."""
        far, agreeing = windows.span_divergence(outputs, soft, batch, temperature)
        return Comparison(far, agreeing, temperature**2)

    # Answers

    @override
    def empty_answer(self) -> AnswerPrediction:
        return AnswerPrediction("", 0.0, None, None)

    @override
    def usage(self, run: str) -> str:
        return f"pretune predict {run} --question TEXT --context-file FILE"

    @override
    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[WindowSpans]:
        """Return the best spans of each window."""
        options = self.options
        return windows.best_spans(
            outputs, batch, longest=options.max_answer_length, count=options.n_best
        )

    @override
    def certainty(self, outputs: Tensor, batch: PackedBatch, answered: Tensor) -> Tensor:
        """Return the logits of the likeliest first and last token, by which windows compete."""
        passage = windows.allowed(batch) & (batch.positions > 0)
        if not passage.any():  # a window without passage competes with none
            return outputs.new_zeros(())
        ends = answered[passage].argmax(0, keepdim=True)
        return outputs.float()[passage].gather(0, ends).sum()

    @override
    def combine(self, parts: Sequence[WindowSpans], record: Mapping[str, Any]) -> AnswerPrediction:
        """Return the best span of all windows of a passage, or none by the threshold."""
        best, context = windows.merged(parts, self.options.n_best), str(record["context"])
        # A softmax over the best spans and, where that is possible, no answer.
        scores = best.scores.tolist()
        logits = [*scores, best.null] if self.options.no_answer else scores
        top = max(logits, default=0.0)
        weights = [math.exp(score - top) for score in logits]
        total = math.fsum(weights)
        places = zip(best.chars.tolist(), weights, strict=False)
        spans = tuple(AnswerSpan(context[a:b], weight / total, a, b) for (a, b), weight in places)
        null = odds = None
        if self.options.no_answer:
            null, odds = weights[-1] / total, best.null - scores[0] if scores else None
        # BERT, section 4.3: an answer only if no answer does not score more by the threshold.
        if not spans or (odds is not None and odds > self.threshold):
            return AnswerPrediction("", null or 0.0, None, None, spans, null, odds)
        first = spans[0]
        return AnswerPrediction(
            first.answer, first.score, first.start, first.end, spans, null, odds
        )

    # Scorer

    @override
    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        """Compute the loss of each window; windows whose answer has no place count 0."""
        sums, known = windows.span_loss(outputs.detach(), batch, windows.allowed(batch))
        return EachLoss(sums, known.long())

    @override
    def grader(self, records: Records) -> Callable[[AnswerPrediction, int], Grade]:
        """Compare by exact match and F1; the counts are these two and 1."""
        places = (records.where(row, "answers") for row in range(len(records)))
        right = [*map(windows.right_answers, records.rows, places)]
        texts = [[answer.text for answer in answers] for answers in right]
        compare = comparison(texts, self.options.match, no_answer=self.options.no_answer)

        def grade(answer: AnswerPrediction, row: int) -> Grade:
            exact, f1 = compare(texts[row], answer.answer)
            mistakes = () if exact else (_mistake(answer, right[row], records.rows[row]),)
            return Grade(
                truth=" / ".join(dict.fromkeys(texts[row])) or NO_ANSWER,
                answer=answer.answer or NO_ANSWER,
                right=exact == 1.0,
                decisions=(Decision(answer.score, exact == 1.0),),
                mistakes=mistakes,
                counts=(exact, f1, 1.0),
            )

        return grade

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        count = np.maximum(sums[..., 4], 1)
        both = {"exact_match": 100 * sums[..., 2] / count, "f1": 100 * sums[..., 3] / count}
        return {**super().figures(sums), **both}

    @override
    def metrics(self, features: Features | None = None) -> AnswerMetrics:
        # Features of a corpus have no records, and there are no questions in a corpus.
        return AnswerMetrics(self, features if isinstance(features, FeatureSet) else None)

    @override
    def calibrate(self, metrics: AnswerMetrics) -> None:
        """Choose the threshold with the best F1."""
        if not self.options.no_answer or not metrics.graded:
            return
        best = metrics.best("f1")
        lowest = min(graded.odds for graded in metrics.graded)
        # If nothing is better than never to answer, a threshold below all odds that were seen.
        self.threshold = (lowest - 1.0 if math.isfinite(lowest) else 0.0) if best.none else best.at

    @override
    def restore_calibration(self, state: Mapping[str, Any]) -> None:
        self.threshold = finite(state["threshold"], "threshold")

    # Described

    @override
    def config_entries(self) -> dict[str, Any]:
        return {THRESHOLD: self.threshold} if self.options.no_answer else {}

    @override
    def state(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        return type(self)(self.options, finite(state["threshold"], "threshold"))

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith("ForQuestionAnswering"):
            return None
        threshold, length = config.get(THRESHOLD), max(8, usual_length(config, 384))
        options = AnswerOptions.of_length(length, no_answer=threshold is not None)
        try:
            return cls(options, 0.0 if threshold is None else finite(threshold, THRESHOLD))
        except ValueError as error:
            raise CheckpointError(
                f"config.json: {error}", "Copy the file again, or repair it there."
            ) from None


def _mistake(
    answer: AnswerPrediction, right: Sequence[Answer], record: Mapping[str, Any]
) -> Mistake:
    """Return the kind of mistake that a wrong answer is.

    `missed`: none is given where there is an answer; `spurious`: the other way round; `boundary`:
    the answer overlaps with a right one; else `elsewhere`.
    """
    start, end = answer.start, answer.end
    if start is None or end is None:
        return Mistake("missed", "", answer.score)
    if not right:
        return Mistake("spurious", "", answer.score)
    # Where the right answers stand; one that is not at its `answer_start`, where it occurs first.
    context, touched = str(record["context"]), []
    for text, low in ((own.text, own.start) for own in right):
        if low < 0 or not context.startswith(text, low):
            low = context.find(text)
        if 0 <= low < end and start < low + len(text):
            touched.append((low, low + len(text)))
    if not touched:
        return Mistake("elsewhere", "", answer.score)
    if any(low <= start and end <= high for low, high in touched):
        detail = "a part of the right answer"
    elif any(start <= low and high <= end for low, high in touched):
        detail = "the right answer and more"
    else:
        detail = "overlaps with the right answer"
    return Mistake("boundary", detail, answer.score)


@dataclass(frozen=True)
class GradedSpan:
    """The best span of a record, compared with the right answers: exact match and F1, 0 to 1.

    `odds` is the score of no answer minus that of the span; `answered`: there is a right answer.
    """

    text: str
    odds: float
    answered: bool
    exact: float
    f1: float

    def at(self, threshold: float) -> tuple[float, float]:
        """Return exact match and F1 if no answer is given where `odds` is above the threshold."""
        if self.odds > threshold:
            return float(not self.answered), float(not self.answered)
        return self.exact, self.f1


class AnswerMetrics:
    """Exact match and F1 of whole records; keeps the best spans of their windows.

    `features` are the windows with their records; None where only names are wanted.
    """

    def __init__(self, task: Answerer, features: FeatureSet | None) -> None:
        self._task, self._features = task, features
        self._parts: dict[int, WindowSpans] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the data, which every process has."""
        return {"_parts": self._parts, "_task": None, "_features": None}

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Add one batch of logits `[T, 2]`."""
        spans = self._task.predict(outputs, batch)
        self._parts.update(zip(batch.index.tolist(), spans, strict=True))
        self.__dict__.pop("graded", None)

    def merge(self, other: Self) -> None:
        """Add the windows of another process."""
        self._parts.update(other._parts)
        self.__dict__.pop("graded", None)

    @cached_property
    def graded(self) -> list[GradedSpan]:
        """The best span of each record, in the order of the records."""
        if self._features is None:
            return []
        # The windows of a record may have come in different batches.
        by_record: dict[int, list[WindowSpans]] = {}
        for index in sorted(self._parts):
            record = int(self._features.records[index])
            by_record.setdefault(record, []).append(self._parts[index])
        rows = [self._features.rows[record] for record in by_record]
        right = [[answer.text for answer in windows.right_answers(row, "answers")] for row in rows]
        options = self._task.options
        compare = comparison(right, options.match, no_answer=options.no_answer)
        # The figures are those of the best span; whether it is given depends on the threshold.
        graded = []
        for parts, row, texts in zip(by_record.values(), rows, right, strict=True):
            answer = self._task.combine(parts, row)
            text = answer.candidates[0].answer if answer.candidates else ""
            odds = math.inf if answer.null_odds is None else answer.null_odds
            graded.append(GradedSpan(text, odds, bool(texts), *compare(texts, text)))
        return graded

    def best(self, figure: str) -> NullThreshold:
        """Return the best threshold for `exact` or `f1`."""
        names = (figure, "odds", "answered", "text")
        columns = ([getattr(graded, name) for graded in self.graded] for name in names)
        return best_null_threshold(*columns)

    def result(self) -> dict[str, float]:
        """Compute the figures in percent, by the names of SQuAD's scripts.

        `exact_match` and `f1`. Where there may be no answer, both are at the model's threshold;
        there are also those of the questions with an answer (`HasAns_`) and without (`NoAns_`), and
        the best figures that any threshold gives on these data (`best_`, `_thresh`).
        """
        if not self._task.options.no_answer:
            return _percent([(own.exact, own.f1) for own in self.graded], "exact_match", "f1")
        pairs = [(own.answered, own.at(self._task.threshold)) for own in self.graded]
        figures = _percent([pair for _, pair in pairs], "exact_match", "f1")
        for name, kind in (("HasAns", True), ("NoAns", False)):
            own = [pair for answered, pair in pairs if answered is kind]
            if own or self._features is None:
                figures |= _percent(own, f"{name}_exact", f"{name}_f1")
        for name in ("exact", "f1"):
            best = self.best(name)
            figures |= {f"best_{name}": best.best, f"best_{name}_thresh": best.last}
        return figures

    def details(self) -> dict[str, Any]:
        """Return how many records there are, and how many of them have an answer."""
        details: dict[str, Any] = {"examples": len(self.graded)}
        if self._task.options.no_answer:
            answered = sum(graded.answered for graded in self.graded)
            details |= {"with_answer": answered, "without_answer": len(self.graded) - answered}
            details["threshold"] = self._task.threshold
        return details


def _percent(pairs: Sequence[tuple[float, float]], exact: str, f1: str) -> dict[str, float]:
    """Return the means of exact match and F1 in percent, under the given names."""
    count = max(len(pairs), 1)
    first, second = (100.0 * sum(pair[i] for pair in pairs) / count for i in range(2))
    return {exact: first, f1: second}
