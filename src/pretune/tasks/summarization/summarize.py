"""`summarize`: a text in few words, written by an encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Features
from pretune.data.records import Records
from pretune.tasks.base import TaskOptions
from pretune.tasks.grading import Grade
from pretune.tasks.losses import with_perplexity
from pretune.tasks.summarization.rouge import rouge
from pretune.tasks.translation.rewriting import (
    RewriteOptions,
    Rewriting,
    WrittenMetrics,
    WrittenPrediction,
)

#: How many summaries `SummarizeMetrics.details` shows.
SHOWN = 10
_NAMES = ("rouge1", "rouge2", "rouge_l")


class SummarizeOptions(RewriteOptions):
    """Options of `summarize`."""

    name: Literal["summarize"] = Field("summarize", description="Summarize a text.")
    max_length: int = Field(
        512,
        ge=3,
        description="The maximum number of tokens of a document; of longer ones the beginning is "
        "read.",
    )
    max_written: int | None = Field(
        128,
        ge=1,
        le=1_000_000,
        description="The maximum number of tokens of a summary; null: max_length.",
    )
    beams: int = Field(
        4,
        ge=1,
        le=1000,
        description="Beams of the search for a summary; 1: always the most probable token.",
    )


@dataclass(frozen=True)
class SummaryPrediction(WrittenPrediction):
    """A summary.

    Attributes:
        summary: the best one.
        score: its log-probability over its tokens to the power of `length_penalty`.
        candidates: where several were asked for, each with its score, best first.
    """

    summary: str
    score: float
    candidates: list[tuple[str, float]] = field(default_factory=list)

    @property
    @override
    def best(self) -> str:
        return self.summary


class Summarize(Rewriting[SummarizeOptions, SummaryPrediction]):
    """A document and its summary, read and written by an encoder-decoder; evaluated by ROUGE."""

    name: ClassVar[str] = "summarize"
    options_type: ClassVar[type[TaskOptions]] = SummarizeOptions
    best_by: ClassVar[str] = "rouge_l"
    inputs: ClassVar[dict[str, str]] = {"document": "a text"}
    targets: ClassVar[dict[str, str]] = {"summary": "what it says in few words"}
    text_columns: ClassVar[tuple[str, ...]] = ("document", "summary")
    kept_together: ClassVar[tuple[str, ...]] = ("document",)
    # The beginning of a document says much of what it is about.
    truncates_in_training: ClassVar[bool] = True

    @override
    def answer(
        self, text: str, score: float, candidates: list[tuple[str, float]]
    ) -> SummaryPrediction:
        return SummaryPrediction(text, score, candidates)

    # Scorer

    @override
    def metrics(self, features: Features | None = None) -> SummarizeMetrics:
        return SummarizeMetrics(features)

    @override
    def grader(self, records: Records) -> Callable[[SummaryPrediction, int], Grade]:
        """Show both texts; the counts are a 1 and the figures of ROUGE."""

        def grade(answer: SummaryPrediction, row: int) -> Grade:
            reference = records.text(row, "summary")
            found = rouge(answer.summary, reference)
            counts = (1.0, found.rouge1, found.rouge2, found.rouge_l)
            return Grade(reference, answer.summary, counts=counts)

        return grade

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        count = np.maximum(sums[..., 2], 1)
        means = {name: 100 * sums[..., 3 + i] / count for i, name in enumerate(_NAMES)}
        return {**with_perplexity(super().figures(sums)), **means}


class SummarizeMetrics(WrittenMetrics):
    """Compare all summaries with their references."""

    @override
    def result(self) -> dict[str, float]:
        """Compute the figures: `rouge1`, `rouge2` and `rouge_l`, 0 to 100, means over documents."""
        told = self.compared("document", "summary")
        scores = [rouge(text, reference) for _, text, reference in told]
        means = {
            name: 100 * sum(getattr(own, name) for own in scores) / max(len(scores), 1)
            for name in _NAMES
        }
        return {**means, **super().result()}

    def details(self) -> dict[str, Any]:
        """Return the first summaries beside what they are of."""
        told = self.compared("document", "summary")[:SHOWN]
        names = ("document", "summary", "reference")
        return {"summaries": [dict(zip(names, row, strict=True)) for row in told]} if told else {}
