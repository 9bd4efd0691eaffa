"""`classify`: one of several classes for a text or a pair of texts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError, did_you_mean
from pretune.models.config import brief
from pretune.tasks.base import Loss, Prediction, TaskOptions
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.classification.counts import POSITIVE, class_figures, class_table
from pretune.tasks.distillation.teachable import Comparison, compare_classes
from pretune.tasks.grading import Decision, EachLoss, Grade, Mistake, TellsTruths
from pretune.tasks.labels import (
    LabelText,
    as_number,
    choose_labels,
    finite,
    label_key,
    label_number,
    label_remarks,
    label_text,
    listed_labels,
    numbered,
    stored_labels,
)
from pretune.tasks.losses import IGNORED, CrossEntropyOptions, cross_entropy
from pretune.tasks.sentences import CLASSES, SentenceOptions, SentenceTask
from pretune.text.terminal import in_line

#: How much an example counts in the loss.
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ClassifyOptions(CrossEntropyOptions, SentenceOptions):
    """Options of `classify`."""

    left_out: ClassVar[frozenset[str]] = SentenceOptions.left_out | {POSITIVE}

    name: Literal["classify"] = Field("classify", description="One label for a text or a pair.")
    labels: dict[LabelText, LabelText] | list[LabelText] | None = Field(
        None,
        description="The labels in their order, or a map from what the data say to what to show "
        "(0: negative). Default: the labels that occur in the training data, sorted.",
    )
    class_weights: Literal["auto"] | dict[LabelText, Weight] | None = Field(
        None,
        description="How much an example of each label counts in the loss: {spam: 5} (1 for all "
        "others), or auto: in inverse proportion to how often the label occurs.",
    )
    focal_gamma: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Focal loss: examples that are already right count less (usual: 2; 0: off).",
    )
    positive: LabelText | None = Field(
        None,
        description="Of two labels the one that f1 is of, such as spam. Default: the second, as in "
        "GLUE.",
    )

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        given = ("label_smoothing", "z_loss", "class_weights", "focal_gamma")
        others = [name for name in given if getattr(self, name)]
        if self.criterion is not None and others:
            raise ValueError(f"criterion takes the place of the loss: no {', '.join(others)}")
        return self


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The answer of a classifier: the most probable label, with its probability.

    Attributes:
        label: the most probable one.
        score: its probability, from 0 to 1.
        scores: the probability of every label, in the model's order.
    """

    label: str
    score: float
    scores: dict[str, float]

    @override
    def ranked(self) -> list[tuple[str, float]]:
        return sorted(self.scores.items(), key=lambda item: -item[1])

    @override
    def top(self, count: int | None) -> Self:
        return self if count is None else replace(self, scores=dict(self.ranked()[:count]))


class Classify(SentenceTask[ClassifyOptions, ClassPrediction], HasCertainty, TellsTruths):
    """A softmax over the classes."""

    name: ClassVar[str] = "classify"
    options_type: ClassVar[type[TaskOptions]] = ClassifyOptions
    best_by: ClassVar[str] = "accuracy"
    metric_options: ClassVar[tuple[str, ...]] = (POSITIVE,)
    problem_type: ClassVar[str] = CLASSES
    #: How much an example of each class counts in the loss; None: all the same.
    weights: list[float] | None = None

    # Preprocessor

    @property
    @override
    def targets(self) -> dict[str, str]:
        return {"label": "its label"}

    @override
    def fit(self, records: Records) -> None:
        """Choose the labels and their weights.

        Raises:
            DataError: fewer than two labels, one that the recipe does not list, or an option about
                a label that does not exist.
        """
        self.labels = choose_labels(self.options.labels, records, "label", self._raw_labels)
        # A column that cannot be the one with the labels is refused.
        count, column = len(self.labels), records.in_data("label")
        if count < 2:
            number = f"only one label, {self.labels[0]!r}" if self.labels else "no label"
            raise DataError(
                f"{records.origin}, column '{column}': {number}",
                "A classifier needs at least two; is it the right column? (data.columns.label=...)",
            )
        # A mistaken column has nearly as many values as records.
        if count > 0.5 * len(records) and count > 20:
            raise DataError(
                f"{records.origin}, column '{column}': {count} different labels in "
                f"{len(records)} records",
                "That looks like a column of texts: data.columns.label=COLUMN names the right one.",
            )
        if self.options.positive is not None and count != 2:
            raise DataError(
                f"task.positive: there are {count} labels, and f1 is the mean of theirs",
                "Leave it out: it is for two labels. The report has the figures of each label.",
            )
        self.positive  # noqa: B018 - checks the option
        self.weights = self._class_weights(records)

    @property
    def positive(self) -> int:
        """The number of the label that F1 is of, where there are two.

        Raises:
            DataError: no label has the name that the option gives.
        """
        if self.options.positive is None or len(self.labels) != 2:
            return 1
        self._check_label(POSITIVE, self.options.positive)
        return self.labels.index(self.options.positive)

    def _check_label(self, option: str, label: str) -> None:
        """Raise a DataError where an option names a label that does not exist."""
        if label not in self.labels:
            raise DataError(
                f"task.{option}: no label is called '{label}'",
                f"{did_you_mean(label, self.labels)} There are: {', '.join(self.labels)}.",
            )

    def _class_weights(self, records: Records) -> list[float] | None:
        """Return the weights of `class_weights`; for `auto` scikit-learn's "balanced".

        That is `N / (K * n)` for a label with `n` of the `N` records, where `K` labels occur (King
        & Zeng 2001): the mean over the training data is 1. A label that never occurs gets 1.
        """
        given = self.options.class_weights
        if given is None:
            return None
        if given != "auto":
            for label in given:
                self._check_label("class_weights", label)
            return [given.get(label, 1.0) for label in self.labels]
        # auto: by how often each label occurs.
        ids = numbered(self.labels)
        numbers = [self.label_id(records, row, ids) for row in range(len(records))]
        counts = np.bincount(numbers, minlength=len(self.labels))
        occurring = np.count_nonzero(counts)
        return [len(records) / (occurring * n) if n else 1.0 for n in counts.tolist()]

    def _raw_labels(self, records: Records, row: int) -> list[str]:
        """Return a record's label as the data spell it, in a list."""
        return [label_text(records, row, "label", records.rows[row].get("label"))]

    @override
    def remarks(self, records: Records) -> Iterable[str]:
        yield from label_remarks(self.labels, self.options.labels, records, self._raw_labels)
        if len(self.labels) == 2 and self.options.positive is None:
            first, second = (in_line(brief(label)) for label in self.labels)
            other = shlex.quote(f"task.positive={first}")
            yield f"f1 is of the label '{second}'; of the other with {other}"
        # A table has scores as text, which may be labels: 1.5 of 5 stars.
        numbers = [as_number(label) for label in self.labels]
        if any(number % 1 for number in numbers) and not any(map(math.isnan, numbers)):
            yield (
                "the labels are numbers with fractions: if they are scores, train "
                "task.name=regress data.columns.score=label"
            )

    @override
    def check_target(self, records: Records, row: int) -> None:
        (raw,) = self._raw_labels(records, row)
        given = self.options.labels
        if given is not None:
            label_number(*(records, row, "label", raw, given), numbered(listed_labels(given)))

    @override
    def strata(self, records: Records) -> list[list[str]]:
        return [[label_key(*self._raw_labels(records, row))] for row in range(len(records))]

    def label_id(self, records: Records, row: int, ids: dict[str, int]) -> int:
        """Return the number of a record's label, by the number of each label.

        Raises:
            DataError: no label, or an unknown one; names file and line.
        """
        (raw,) = self._raw_labels(records, row)
        return label_number(records, row, "label", raw, self.options.labels, ids)

    @override
    def target_reader(self, records: Records) -> Callable[[int], dict[str, Any]]:
        ids = numbered(self.labels)
        return lambda row: {"label": self.label_id(records, row, ids)}

    # Head

    @override
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Compute the cross-entropy, counted in sequences.

        The count is of sequences also with class weights, not of weights as in torch's weighted
        mean: a batch then estimates the mean over the data, whatever labels it happens to have, and
        the parts of a batch add up.
        """
        labels, options = batch.targets["label"], self.options
        if options.criterion is not None:
            from pretune.tasks.own_losses import own_loss  # few need it

            return own_loss(options.criterion, outputs.float(), labels, labels != IGNORED)
        total, parts = cross_entropy(
            outputs,
            labels,
            options.label_smoothing,
            options.z_loss,
            class_weights=self.weights,
            focal_gamma=options.focal_gamma,
        )
        return Loss(total, len(labels), parts)

    # Learning from a teacher

    @override
    def no_label(self) -> dict[str, Any]:
        return {"label": IGNORED}

    @override
    def soften(self, outputs: Tensor, batch: PackedBatch, temperature: float) -> Tensor:
        """Return probabilities `[B, C]` at the temperature."""
        return (outputs.float() / temperature).softmax(-1)

    @override
    def compare(
        self, outputs: Tensor, soft: Tensor, batch: PackedBatch, temperature: float
    ) -> Comparison:
        return compare_classes(outputs, soft, temperature)

    # Answers

    @override
    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[ClassPrediction]:
        answers = []
        for row in outputs.float().softmax(-1).tolist():
            scores = dict(zip(self.labels, row, strict=True))
            best = max(scores, key=scores.__getitem__)
            answers.append(ClassPrediction(best, scores[best], scores))
        return answers

    @override
    def certainty(self, outputs: Tensor, batch: PackedBatch, answered: Tensor) -> Tensor:
        best = answered.argmax(-1, keepdim=True)
        return outputs.float().log_softmax(-1).gather(-1, best).sum()

    # Scorer

    @override
    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        labels = batch.targets["label"]
        sums = F.cross_entropy(outputs.detach().float(), labels, reduction="none")
        return EachLoss(sums, torch.ones_like(labels))

    @override
    def grader(self, records: Records) -> Callable[[ClassPrediction, int], Grade]:
        ids = numbered(self.labels)

        def grade(answer: ClassPrediction, row: int) -> Grade:
            truth, predicted = self.label_id(records, row, ids), ids[answer.label]
            right, label = truth == predicted, self.labels[truth]
            # For each label: whether it was predicted rightly, was the truth, was predicted.
            counts = np.zeros((3, len(ids)))
            counts[0, truth], counts[1, truth], counts[2, predicted] = right, 1, 1
            mistake = Mistake("confused", f"{label} taken for {answer.label}", answer.score)
            probabilities = tuple(answer.scores.values())
            return Grade(
                truth=label,
                answer=answer.label,
                right=right,
                decisions=(Decision(answer.score, right, probabilities, predicted, truth),),
                mistakes=() if right else (mistake,),
                counts=tuple(counts.ravel().tolist()),
            )

        return grade

    @override
    def answers_and_truths(
        self, outputs: Tensor, batch: PackedBatch
    ) -> tuple[list[str], list[str | None]]:
        """Return labels."""
        answers = [self.labels[number] for number in outputs.argmax(-1).tolist()]
        truths = batch.targets["label"].tolist()
        return answers, [None if number == IGNORED else self.labels[number] for number in truths]

    @override
    def scores_and_targets(self, outputs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return outputs.float().softmax(-1), batch.targets["label"]

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        right, truth, predicted = np.split(sums[..., 2:], 3, axis=-1)
        return {**super().figures(sums), **class_figures(right, truth, predicted, self.positive)}

    @override
    def metrics(self, features: Features | None = None) -> ClassificationMetrics:
        return ClassificationMetrics(self.labels, self.positive)

    # Described

    @override
    def state(self) -> dict[str, Any]:
        weights = {} if self.weights is None else {"weights": self.weights}
        return {"labels": self.labels, **weights}

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        task = type(self)(self.options, stored_labels(state["labels"]))
        if (weights := state.get("weights")) is not None:
            task.weights = [finite(weight, "one of weights") for weight in weights]
        return task


class ClassificationMetrics:
    """Accuracy, F1 and Matthews correlation from the confusion matrix.

    Args:
        labels: of the model.
        positive: the number of the label that F1 is of, where there are two.
    """

    def __init__(self, labels: list[str], positive: int = 1) -> None:
        self.labels, self.positive = labels, positive
        #: `[C, C]` counts; rows are the truth, columns what was predicted.
        self.confusion: Array = np.zeros((len(labels), len(labels)), dtype=np.int64)

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Count one batch of logits `[B, C]`; records without a label do not count."""
        # The number of each cell of the matrix, counted at once.
        labels = batch.targets["label"]
        pairs = labels * len(self.labels) + outputs.argmax(-1)
        counts = torch.bincount(pairs[labels != IGNORED], minlength=self.confusion.size)
        self.confusion += counts.cpu().numpy().reshape(self.confusion.shape)

    def merge(self, other: Self) -> None:
        """Add the counts of another evaluation."""
        self.confusion += other.confusion

    def _margins(self) -> tuple[Array, Array, Array]:
        """Return how often each label was predicted rightly, was the truth, was predicted."""
        matrix = self.confusion.astype(float)
        return np.diag(matrix), matrix.sum(1), matrix.sum(0)

    def result(self) -> dict[str, float]:
        """Compute the figures of `class_figures`."""
        figures = class_figures(*self._margins(), self.positive)
        return {name: float(value) for name, value in figures.items()}

    def details(self) -> dict[str, Any]:
        """Return the confusion matrix, the figures of each class, and which of two F1 is of."""
        named = {POSITIVE: self.labels[self.positive]} if len(self.labels) == 2 else {}
        return {
            "labels": self.labels,
            "confusion": self.confusion.tolist(),
            "per_class": class_table(self.labels, *self._margins()),
            **named,
        }
