"""`regress`: a score for a text or a pair, such as how similar two sentences are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.tasks.base import Loss, Metrics, Prediction, TaskOptions
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.distillation.teachable import Comparison
from pretune.tasks.grading import EachLoss, Grade, TellsTruths
from pretune.tasks.labels import as_number
from pretune.tasks.sentences import SCORE, SentenceOptions, SentenceTask

#: Fresh weights would need more updates than a fine-tuning has to reach larger scores.
MAX_SCORE = 1000.0
#: A variance below this share of the mean square is rounding error.
ROUNDING = 1e-12


class RegressOptions(SentenceOptions):
    """Options of `regress`."""

    name: Literal["regress"] = Field("regress", description="A score for a text or a pair.")


@dataclass(frozen=True)
class ScorePrediction(Prediction):
    """The score of a text, in the unit of the training data.

    Attributes:
        score: the number.
    """

    score: float


class Regress(SentenceTask[RegressOptions, ScorePrediction], HasCertainty, TellsTruths):
    """The mean squared error of one output.

    Scores are learned as they are, not standardised: what is saved is what was trained, so
    transformers gives the same numbers and a resumed run is exact. The scale of the loss does not
    matter to AdamW, only how far the weights have to go: scores of about 0 to 10 suit it.
    """

    name: ClassVar[str] = "regress"
    options_type: ClassVar[type[TaskOptions]] = RegressOptions
    best_by: ClassVar[str] = "pearson"
    problem_type: ClassVar[str] = SCORE
    soft_type: ClassVar[torch.dtype] = torch.float32

    def __init__(self, options: RegressOptions, labels: Iterable[str] = ()) -> None:
        # The one output keeps transformers' default name, whatever a checkpoint calls it.
        super().__init__(options, ["LABEL_0"])

    # Preprocessor

    @property
    @override
    def targets(self) -> dict[str, str]:
        return {"score": "its score, a number"}

    @override
    def fit(self, records: Records) -> None:
        """Check all scores before a model is loaded.

        Raises:
            DataError: a score is no number, all are the same, or one is too large to be learned.
        """
        scores = [self._score(records, row) for row in range(len(records))]
        if len(scores) > 1 and len(set(scores)) == 1:
            raise DataError(
                f"{records.origin}, column '{records.in_data('score')}': every score is "
                f"{scores[0]:g}",
                "There is nothing to learn; is it the right column? (data.columns.score=...)",
            )
        largest = max(range(len(scores)), key=lambda row: abs(scores[row]))
        if abs(scores[largest]) > MAX_SCORE:
            raise DataError(
                f"{records.where(largest, 'score')}: a score of {scores[largest]:g} is out of "
                f"reach for a model that starts at 0 (the limit is {MAX_SCORE:g})",
                "Give the scores in another unit, e.g. in thousands, or their logarithm.",
            )

    @override
    def check_target(self, records: Records, row: int) -> None:
        self._score(records, row)

    def _score(self, records: Records, row: int) -> float:
        value: Any = records.rows[row].get("score")
        number = as_number(value)
        if not math.isfinite(number):
            raise DataError(
                f"{records.where(row, 'score')}: expected a number, found {value!r}",
                "Give every record a finite number there, or remove the record. "
                "(data.columns.score=COLUMN names the column.)",
            )
        return number

    @override
    def target_reader(self, records: Records) -> Callable[[int], dict[str, Any]]:
        return lambda row: {"score": np.float32(self._score(records, row))}

    # Head

    @override
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Compute the squared error, counted in sequences."""
        scores = batch.targets["score"]
        if (name := self.options.criterion) is not None:
            from pretune.tasks.own_losses import own_loss  # few need it

            return own_loss(name, outputs[:, 0].float(), scores, ~scores.isnan())
        errors = outputs[:, 0].float() - scores
        if self.unlabelled:
            errors = errors[~scores.isnan()]
        return Loss(errors.square().sum(), len(scores))

    # Learning from a teacher

    @override
    def no_label(self) -> dict[str, Any]:
        return {"score": np.float32(np.nan)}

    @override
    def soften(self, outputs: Tensor, batch: PackedBatch, temperature: float) -> Tensor:
        """Return the scores `[B, 1]` as they are."""
        return outputs.float()

    @override
    def compare(
        self, outputs: Tensor, soft: Tensor, batch: PackedBatch, temperature: float
    ) -> Comparison:
        """Compare scores: the squared error; they agree if they differ by less than a half."""
        errors = (outputs.float() - soft)[:, 0]
        return Comparison(errors.square(), (errors.abs() < 0.5).float(), 1.0)

    # Answers

    @override
    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[ScorePrediction]:
        return [ScorePrediction(score) for score in outputs[:, 0].float().tolist()]

    @override
    def certainty(self, outputs: Tensor, batch: PackedBatch, answered: Tensor) -> Tensor:
        return outputs.float().sum()

    # Scorer

    @override
    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        scores = batch.targets["score"]
        return EachLoss((outputs[:, 0].detach().float() - scores).square(), torch.ones_like(scores))

    @override
    def grader(self, records: Records) -> Callable[[ScorePrediction, int], Grade]:
        def grade(answer: ScorePrediction, row: int) -> Grade:
            x, y = answer.score, self._score(records, row)
            # Sums of these give the moments from which `figures` computes the correlation.
            counts = (1.0, x, y, x**2, y**2, x * y, abs(x - y))
            return Grade(truth=f"{y:g}", answer=f"{x:.4f}", counts=counts)

        return grade

    @override
    def answers_and_truths(
        self, outputs: Tensor, batch: PackedBatch
    ) -> tuple[list[float], list[float | None]]:
        """Return scores."""
        truths = batch.targets["score"].tolist()
        answers: list[float] = outputs[:, 0].float().tolist()
        return answers, [None if math.isnan(score) else score for score in truths]

    @override
    def scores_and_targets(self, outputs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return outputs[:, 0].float(), batch.targets["score"].float()

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        """Compute the mean squared error (the loss), mean absolute error, and Pearson's r."""
        loss = super().figures(sums)
        # The means of the counts that `grader` gives each example.
        count, *totals = np.moveaxis(sums[..., 2:], -1, 0)
        x, y, xx, yy, xy, error = (total / np.maximum(count, 1) for total in totals)
        variance_x, variance_y = xx - x**2, yy - y**2
        # Where one side does not vary, the correlation is undefined, and 0 here.
        defined = (variance_x > ROUNDING * xx) & (variance_y > ROUNDING * yy)
        covariance = np.where(defined, xy - x * y, 0.0)
        deviations = [np.sqrt(np.where(defined, v, 1.0)) for v in (variance_x, variance_y)]
        pearson = np.clip(covariance / (deviations[0] * deviations[1]), -1.0, 1.0)
        return {**loss, "mse": loss["loss"], "mae": error, "pearson": pearson}

    @override
    def metrics(self, features: Features | None = None) -> RegressionMetrics:
        return RegressionMetrics()


class RegressionMetrics(Metrics):
    """Pearson's and Spearman's correlation, mean squared and mean absolute error.

    Ranks need all scores at once, so all are kept: 16 bytes an example. They are sorted before
    anything is added up: the figures do not depend on how the examples were batched or shared out.
    """

    def __init__(self) -> None:
        self._pairs: list[Array] = []

    @override
    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        predicted, truth = outputs[:, 0].cpu().double(), batch.targets["score"].cpu().double()
        pairs = np.stack([predicted.numpy(), truth.numpy()])
        self._pairs.append(pairs[:, ~np.isnan(pairs[1])])

    @override
    def merge(self, other: Self) -> None:
        self._pairs += other._pairs

    @override
    def result(self) -> dict[str, float]:
        predicted, truth = np.concatenate([np.empty((2, 0)), *self._pairs], 1)
        if len(predicted) == 0:
            return dict.fromkeys(("pearson", "spearman", "mse", "mae"), 0.0)
        # In one order, so that sums are the same to the last bit however batches were made.
        order = np.lexsort((predicted, truth))
        predicted, truth = predicted[order], truth[order]
        return {
            "pearson": pearson_correlation(predicted, truth),
            "spearman": pearson_correlation(ranks(predicted), ranks(truth)),
            "mse": float(np.square(predicted - truth).mean()),
            "mae": float(np.abs(predicted - truth).mean()),
        }


def pearson_correlation(first: Array, second: Array) -> float:
    """Compute the correlation of two `[N]`; 0 where one of them does not vary."""
    unit_vectors = []
    for values in (first, second):
        centred = values - values.mean()
        spread = float(centred @ centred)
        if not spread > ROUNDING * float(values @ values):  # also where a value is NaN
            return 0.0
        unit_vectors.append(centred / math.sqrt(spread))
    return float(np.clip(unit_vectors[0] @ unit_vectors[1], -1.0, 1.0))


def ranks(values: Array) -> Array:
    """Return `[N]` ranks from 1; equal values share the mean of their ranks."""
    # Equal values share the ranks from ends - counts + 1 to ends.
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Array = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(means[which])
