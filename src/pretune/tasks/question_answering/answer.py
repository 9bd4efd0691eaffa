"""Extractive question answering: the span of a passage that answers a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from pretune.checkpoints.config import THRESHOLD
from pretune.data.arrays import Array
from pretune.data.batch import (
    Feature,
    Features,
    FeatureSet,
    PackedBatch,
    Skipped,
)
from pretune.data.records import Records
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import Calibrated, Loss, Prediction, ReadsWindows, Task, usual_length
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.labels import finite
from pretune.tasks.question_answering.features import WindowMaker
from pretune.tasks.question_answering.grade import answer_grader
from pretune.tasks.question_answering.metrics import AnswerMetrics
from pretune.tasks.question_answering.options import AnswerOptions
from pretune.tasks.question_answering.spans import (
    WindowSpans,
    allowed,
    best_spans,
    merged,
    span_loss,
)
from pretune.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class AnswerSpan:
    """One possible answer: its text, its probability, its first character and the one after it."""

    answer: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class AnswerPrediction(Prediction):
    """The answer to a question.

    Attributes:
        answer: its text; empty where there is none.
        score: its probability among the `n_best` spans and, where that may be, no answer.
        start: its first character in the passage, counted from 0; None where there is no answer.
        end: the character after its last.
        candidates: the best spans, whether or not one of them is the answer.
        no_answer: the probability that there is none; None where there always is one.
        null_odds: how much more no answer scores (a sum of two logits) than the best span.
    """

    answer: str
    score: float
    start: int | None
    end: int | None
    candidates: tuple[AnswerSpan, ...] = ()
    no_answer: float | None = None
    null_odds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what there is not."""
        found = asdict(self)
        empty = [name for name in ("no_answer", "null_odds") if found[name] is None]
        empty += ["candidates"] if not self.candidates else []
        return {name: value for name, value in found.items() if name not in empty}

    def ranked(self) -> list[tuple[str, float]]:
        """The answer, and after it the other candidates."""
        spans = list(self.candidates)
        if self.start is not None and self.end is not None:
            first = AnswerSpan(self.answer, self.score, self.start, self.end)
            spans = [first, *(span for span in spans if span != first)]
        found = [(f"{span.answer}  [{span.start}:{span.end}]", span.score) for span in spans]
        if self.start is None:
            return [("(no answer)", self.score), *found]
        return found

    def top(self, count: int | None) -> Self:
        """With so many candidates; by default with none beside the answer."""
        return replace(self, candidates=() if count in (None, 1) else self.candidates[:count])


class Answerer(Task[AnswerOptions, AnswerPrediction], Calibrated, ReadsWindows):
    """See `AnswerOptions`; the head is `span_answerer`'s: two logits a token (BERT, section 4.2).

    Only tokens of the passage can be the answer; `[CLS]` stands for none. A passage that is longer
    than a window is read in several, and those without the answer learn `[CLS]`.
    """

    name: ClassVar[str] = "answer"
    options_type: ClassVar[type[AnswerOptions]] = AnswerOptions
    head: ClassVar[str] = "question_answering"
    best_by: ClassVar[str] = "f1"
    kept_together: ClassVar[tuple[str, ...]] = ("context",)  # else training would know the passages

    def __init__(self, options: AnswerOptions, threshold: float = 0.0) -> None:
        super().__init__(options)
        self.threshold = threshold

    @property
    def inputs(self) -> dict[str, str]:
        """`question`, `context`."""
        return {"question": "a question", "context": "a passage that holds the answer"}

    def usage(self, run: str) -> str:
        """With a question and its passage."""
        return f"pretune predict {run} --question TEXT --context-file FILE"

    @property
    def targets(self) -> dict[str, str]:
        """`answers`."""
        return {"answers": 'its answers: {"text": [...], "answer_start": [...]}'}

    @property
    def shown(self) -> tuple[str, ...]:
        """The passage may be a book."""
        return ("id", "question")

    @property
    def truncation_note(self) -> str:
        """Questions are; passages are not."""
        return f"had a question of over {self.options.max_question_length} tokens, which was cut"

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """The windows; records whose `answer_start` is wrong are not trained on."""
        maker = WindowMaker(
            self.options, tokenizer, learn=with_targets, skip=True, places=not with_targets
        )
        return maker.windows(records, rows)

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature | Skipped]:
        """The windows of all records: the texts of their answers are right wherever they begin."""
        maker = WindowMaker(self.options, tokenizer, learn=True, skip=False, places=True)
        return maker.windows(records, rows)

    def build(self, backbone: Backbone) -> nn.Module:
        """A linear map to two logits a token."""
        return build_head(backbone, "question_answering")

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """The mean of the cross-entropies of start and end, counted in windows."""
        each, known = span_loss(outputs, batch, allowed(batch))
        return Loss(each.sum(), int(known.sum()))

    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        """That of each window; those whose answer has no place count nothing."""
        each, known = span_loss(outputs.detach(), batch, allowed(batch))
        return EachLoss(each, known.long())

    def grader(self, records: Records) -> Callable[[AnswerPrediction, int], Grade]:
        """Exact match and F1 with the right answers."""
        return answer_grader(self.options, records)

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss, exact match and F1, in percent."""
        count = np.maximum(sums[..., 4], 1)
        both = {"exact_match": 100 * sums[..., 2] / count, "f1": 100 * sums[..., 3] / count}
        return {**super().figures(sums), **both}

    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[WindowSpans]:
        """The best spans of each window."""
        options = self.options
        return best_spans(outputs, batch, longest=options.max_answer_length, count=options.n_best)

    def combine(self, parts: Sequence[WindowSpans], record: Mapping[str, Any]) -> AnswerPrediction:
        """The best span of all windows of a passage, or none by the threshold."""
        best, context = merged(parts, self.options.n_best), str(record["context"])
        scores = best.scores.tolist()
        logits = [*scores, best.null] if self.options.no_answer else scores
        top = max(logits, default=0.0)
        weights = [math.exp(score - top) for score in logits]
        whole = math.fsum(weights)
        places = best.chars.tolist()
        spans = tuple(
            AnswerSpan(context[a:b], weight / whole, a, b)
            for (a, b), weight in zip(places, weights, strict=False)
        )
        odds = best.null - scores[0] if scores else None
        none = weights[-1] / whole if self.options.no_answer else None
        if not spans or (none is not None and odds is not None and odds > self.threshold):
            return AnswerPrediction("", none or 0.0, None, None, spans, none, odds)
        first = spans[0]
        kept_odds = odds if self.options.no_answer else None
        return AnswerPrediction(
            first.answer, first.score, first.start, first.end, spans, none, kept_odds
        )

    def metrics(self, features: Features | None = None) -> AnswerMetrics:
        """Exact match and F1."""
        # A corpus has no questions: what there is has records.
        return AnswerMetrics(self, features if isinstance(features, FeatureSet) else None)

    def calibrate(self, metrics: AnswerMetrics) -> None:
        """The threshold with the best F1."""
        if not self.options.no_answer or not metrics.graded:
            return
        best = metrics.best("f1")
        lowest = min(one.odds for one in metrics.graded)
        # Below all that were seen, if nothing is better than never to answer.
        self.threshold = (lowest - 1.0 if math.isfinite(lowest) else 0.0) if best.none else best.at

    def config_entries(self) -> dict[str, Any]:
        """The threshold, where there may be no answer."""
        return {THRESHOLD: self.threshold} if self.options.no_answer else {}

    def state(self) -> dict[str, Any]:
        """The threshold."""
        return {"threshold": self.threshold}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """With the threshold of an earlier training."""
        return type(self)(self.options, finite(state["threshold"], "threshold"))

    def restore_calibration(self, state: Mapping[str, Any]) -> None:
        """The threshold of the checkpoint."""
        self.threshold = finite(state["threshold"], "threshold")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForQuestionAnswering`.

        Raises:
            CheckpointError: its threshold is no finite number.
        """
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith("ForQuestionAnswering"):
            return None
        found, length = config.get(THRESHOLD), max(8, usual_length(config, 384))
        options = AnswerOptions.of_length(length, no_answer=found is not None)
        try:
            return cls(options, 0.0 if found is None else finite(found, THRESHOLD))
        except ValueError as error:
            raise CheckpointError(
                f"config.json: {error}", "Copy the file again, or repair it there."
            ) from None
