"""Exact match and F1 of whole records, however their windows were spread over batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from pretune.data.batch import FeatureSet, PackedBatch
from pretune.tasks.question_answering.features import right_answers
from pretune.tasks.question_answering.scores import Threshold, best_threshold, comparison
from pretune.tasks.question_answering.spans import WindowSpans

if TYPE_CHECKING:
    from pretune.tasks.question_answering.answer import Answerer


@dataclass(frozen=True)
class Graded:
    """What a record's best span is worth.

    Attributes:
        text: of the span.
        odds: how much more no answer scores than it.
        answered: whether there is a right answer.
        exact: 1 if it is one of the right answers, else 0.
        f1: from 0 to 1.
    """

    text: str
    odds: float
    answered: bool
    exact: float
    f1: float

    def at(self, threshold: float | None) -> tuple[float, float]:
        """Exact match and F1 if no answer is given where `odds` is above the threshold."""
        if threshold is not None and self.odds > threshold:
            return float(not self.answered), float(not self.answered)
        return self.exact, self.f1


class AnswerMetrics:
    """Keeps the best spans of each window until all of a record's are there.

    Args:
        task: gives spans of windows and answers of records, and the threshold.
        features: the windows with their records; None where only names are wanted.
    """

    def __init__(self, task: Answerer, features: FeatureSet | None) -> None:
        self._task, self._features = task, features
        self._parts: dict[int, WindowSpans] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process has to know: not the data, which it has."""
        return {"_parts": self._parts, "_task": None, "_features": None}

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Take in one batch."""
        found = self._task.predict(outputs, batch)
        self._parts.update(zip(batch.index.tolist(), found, strict=True))
        self.__dict__.pop("graded", None)

    def merge(self, other: Self) -> None:
        """Take in another's windows."""
        self._parts.update(other._parts)
        self.__dict__.pop("graded", None)

    @cached_property
    def graded(self) -> list[Graded]:
        """Each record, in their order."""
        if self._features is None:
            return []
        of_record: dict[int, list[WindowSpans]] = {}
        for index in sorted(self._parts):
            record = int(self._features.records[index])
            of_record.setdefault(record, []).append(self._parts[index])
        rows = [self._features.rows[record] for record in of_record]
        right = [[answer.text for answer in right_answers(row, "answers")] for row in rows]
        options = self._task.options
        compare = comparison(right, options.match, no_answer=options.no_answer)
        found = []
        for parts, row, texts in zip(of_record.values(), rows, right, strict=True):
            answer = self._task.combine(parts, row)
            text = answer.candidates[0].answer if answer.candidates else ""
            odds = float("inf") if answer.null_odds is None else answer.null_odds
            exact, f1 = compare(texts, text)
            found.append(Graded(text, odds, bool(texts), exact, f1))
        return found

    def best(self, what: str) -> Threshold:
        """The best threshold for `exact` or `f1`."""
        graded = self.graded
        return best_threshold(
            [getattr(one, what) for one in graded],
            [one.odds for one in graded],
            [one.answered for one in graded],
            [one.text for one in graded],
        )

    def result(self) -> dict[str, float]:
        """In percent, by the names of SQuAD's scripts.

        `exact_match` and `f1`; where there may be no answer, both are at the model's threshold, and
        there are those of the questions with an answer (`HasAns_`) and without (`NoAns_`), and what
        the best thresholds for these very data would give (`best_`, `_thresh`).
        """
        options = self._task.options
        if not options.no_answer:
            return _figures([one.at(None) for one in self.graded], "exact_match", "f1")
        pairs = [(one.answered, one.at(self._task.threshold)) for one in self.graded]
        found = _figures([pair for _, pair in pairs], "exact_match", "f1")
        for name, kind in (("HasAns", True), ("NoAns", False)):
            own = [pair for answered, pair in pairs if answered is kind]
            if own or self._features is None:
                found |= _figures(own, f"{name}_exact", f"{name}_f1")
        for name in ("exact", "f1"):
            best = self.best(name)
            found |= {f"best_{name}": best.best, f"best_{name}_thresh": best.last}
        return found

    def details(self) -> dict[str, Any]:
        """How many records there are, and how many of them have an answer."""
        answered = sum(one.answered for one in self.graded)
        found: dict[str, Any] = {"examples": len(self.graded)}
        if self._task.options.no_answer:
            found |= {
                "with_answer": answered,
                "without_answer": len(self.graded) - answered,
                "threshold": self._task.threshold,
            }
        return found


def _figures(pairs: Sequence[tuple[float, float]], exact: str, f1: str) -> dict[str, float]:
    count = max(len(pairs), 1)
    return {
        exact: 100.0 * sum(pair[0] for pair in pairs) / count,
        f1: 100.0 * sum(pair[1] for pair in pairs) / count,
    }
