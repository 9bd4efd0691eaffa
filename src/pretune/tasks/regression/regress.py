"""A score for a text or a pair: how alike two sentences are, how good a review is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import Loss, Prediction, Task, UsesTokenizer, usual_length
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.sentences import (
    SCORE,
    SentenceOptions,
    encode_sentences,
    label_entries,
    published_kind,
    sentence_columns,
    separate_pairs,
)
from pretune.tokenizers.tokenizer import Tokenizer

#: Beyond this, fresh weights would need more updates to get there than a fine-tuning has.
LARGEST = 1000.0
#: A variance of at most this part of the mean square is what rounding leaves of none.
RESIDUE = 1e-12


class RegressOptions(SentenceOptions):
    """Options of `regress`."""

    name: Literal["regress"] = Field("regress", description="A score for a text or a pair.")


@dataclass(frozen=True)
class ScorePrediction(Prediction):
    """The answer of a regression.

    Attributes:
        score: in the unit of the training data.
    """

    score: float


class Regress(Task[RegressOptions, ScorePrediction], UsesTokenizer):
    """Mean squared error of one output; see `RegressOptions`.

    The scores are learned as they are, not standardised: what is saved is what was trained, so
    transformers gives the same numbers and a resumed run is exact. AdamW does not care about the
    scale of the loss, only about how far the weights have to go: scores of about 0 to 10 suit it.
    """

    name: ClassVar[str] = "regress"
    options_type: ClassVar[type[RegressOptions]] = RegressOptions
    head: ClassVar[str] = "sequence_classification"
    best_by: ClassVar[str] = "pearson"

    @property
    def inputs(self) -> dict[str, str]:
        """`text`, or `sentence1` and `sentence2`."""
        return sentence_columns(self.options)

    @property
    def targets(self) -> dict[str, str]:
        """`score`."""
        return {"score": "its score, a number"}

    def bind(self, tokenizer: Tokenizer) -> None:
        """Pairs need a token between their texts."""
        separate_pairs(self.options, tokenizer)

    def fit(self, records: Records) -> None:
        """Look at all scores before anything is loaded.

        Raises:
            DataError: one is no number; they are all the same; or they are very large.
        """
        scores = [self.score(records, row) for row in range(len(records))]
        if len(scores) > 1 and len(set(scores)) == 1:
            raise DataError(
                f"{records.origin}, column 'score': every score is {scores[0]:g}",
                "There is nothing to learn; is it the right column? (data.columns.score=...)",
            )
        largest = max(range(len(scores)), key=lambda row: abs(scores[row]))
        if abs(scores[largest]) > LARGEST:
            raise DataError(
                f"{records.where(largest, 'score')}: a score of {scores[largest]:g} is out of "
                f"reach for a model that starts at 0 (the limit is {LARGEST:g})",
                "Give the scores in another unit, e.g. in thousands, or their logarithm.",
            )

    def score(self, records: Records, row: int) -> float:
        """The score of a record.

        Raises:
            DataError: there is none, or it is not a finite number; names file and line.
        """
        value = records.rows[row].get("score")
        try:
            if isinstance(value, bool | list | dict):
                raise TypeError
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{records.where(row, 'score')}: expected a number, found {value!r}",
                "Give every record a finite number there, or remove the record. "
                "(data.columns.score=COLUMN says which column it is.)",
            )
        return number

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """One feature a record: `[CLS] text [SEP]` or `[CLS] a [SEP] b [SEP]`."""
        for row, one in encode_sentences(self.options, records, rows, tokenizer):
            score = {"score": np.float32(self.score(records, row))} if with_targets else {}
            yield Feature(one.ids, one.segments, score, row, one.truncated)

    def build(self, backbone: Backbone) -> nn.Module:
        """The family's classifier with one output."""
        return build_head(backbone, self.head, 1, dropout=self.options.dropout)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Squared errors, counted in sequences."""
        scores = batch.targets["score"]
        return Loss((outputs[:, 0].float() - scores).square().sum(), len(scores))

    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[ScorePrediction]:
        """The output as it is."""
        return [ScorePrediction(score) for score in outputs[:, 0].float().tolist()]

    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        """Squared errors."""
        scores = batch.targets["score"]
        return EachLoss((outputs[:, 0].detach().float() - scores).square(), torch.ones_like(scores))

    def grader(self, records: Records) -> Callable[[ScorePrediction, int], Grade]:
        """The two scores; counts 1, both, their squares and product, and how far they are apart."""

        def grade(answer: ScorePrediction, row: int) -> Grade:
            guess, truth = answer.score, self.score(records, row)
            counts = (1.0, guess, truth, guess**2, truth**2, guess * truth, abs(guess - truth))
            return Grade(truth=f"{truth:g}", answer=f"{guess:.4f}", counts=counts)

        return grade

    def figures(self, sums: Array) -> dict[str, Array]:
        """Mean squared error (which is the loss), mean absolute error, Pearson's correlation."""
        found = super().figures(sums)
        count, *others = np.moveaxis(sums[..., 2:], -1, 0)
        guess, truth, guess2, truth2, both, apart = (x / np.maximum(count, 1) for x in others)
        one, two = guess2 - guess**2, truth2 - truth**2
        varies = (one > RESIDUE * guess2) & (two > RESIDUE * truth2)
        above = np.where(varies, both - guess * truth, 0.0)
        below = np.sqrt(np.where(varies, one, 1.0)) * np.sqrt(np.where(varies, two, 1.0))
        pearson = np.clip(above / below, -1.0, 1.0)
        return {**found, "mse": found["loss"], "mae": apart, "pearson": pearson}

    def metrics(self, features: Features | None = None) -> RegressionMetrics:
        """Pearson's and Spearman's correlation, mean squared and absolute error."""
        return RegressionMetrics()

    def config_entries(self) -> dict[str, Any]:
        """One label, and `problem_type`."""
        return label_entries(["LABEL_0"], SCORE)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForSequenceClassification` with one output."""
        found = published_kind(config)
        if found is None or found[0] != SCORE:
            return None
        return cls(RegressOptions(max_length=usual_length(config, 512)))


class RegressionMetrics:
    """Ranks need all scores at once, so all are kept: 16 bytes an example.

    They are put in order before anything is added up: the figures do not depend on how the
    examples were batched or shared out.
    """

    def __init__(self) -> None:
        self._pairs: list[Array] = []

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Take in one batch of outputs `[B, 1]`."""
        guess, truth = outputs[:, 0].cpu().double(), batch.targets["score"].cpu().double()
        self._pairs.append(np.stack([guess.numpy(), truth.numpy()]))

    def merge(self, other: Self) -> None:
        """Take in another's."""
        self._pairs += other._pairs

    def result(self) -> dict[str, float]:
        """The figures; a correlation with what does not vary is 0."""
        guess, truth = np.concatenate([np.empty((2, 0)), *self._pairs], 1)
        if len(guess) == 0:
            return dict.fromkeys(("pearson", "spearman", "mse", "mae"), 0.0)
        order = np.lexsort((guess, truth))
        guess, truth = guess[order], truth[order]
        return {
            "pearson": _pearson(guess, truth),
            "spearman": _pearson(_ranks(guess), _ranks(truth)),
            "mse": float(np.square(guess - truth).mean()),
            "mae": float(np.abs(guess - truth).mean()),
        }

    def details(self) -> dict[str, Any]:
        """The figures are all."""
        return {}


def _pearson(one: Array, two: Array) -> float:
    """Pearson's correlation of two `[N]`; 0 where one of them does not vary."""
    sides = []
    for values in (one, two):
        apart = values - values.mean()
        spread = float(apart @ apart)
        if not spread > RESIDUE * float(values @ values):  # not a number: nothing is like it
            return 0.0
        sides.append(apart / math.sqrt(spread))
    return float(np.clip(sides[0] @ sides[1], -1.0, 1.0))


def _ranks(values: Array) -> Array:
    """From 1 up; equal values share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts - 1) / 2)[which]
    return ranks
