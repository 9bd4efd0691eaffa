"""Classification of single texts and of pairs, into two or more classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pretune.data import Feature, FeatureSet, PackedBatch, Records
from pretune.errors import CheckpointError, DataError, did_you_mean
from pretune.models import Backbone, sequence_classifier
from pretune.tasks.base import Loss, Prediction, Task, TaskOptions, usual_length
from pretune.tasks.grade import Array, EachLoss, Grade
from pretune.tasks.losses import CrossEntropyOptions, cross_entropy
from pretune.text import Tokenizer

#: More classes than any labelled set has; a config.json that claims more is broken.
MOST_LABELS = 100_000


class ClassifyOptions(CrossEntropyOptions):
    """Options of `classify`."""

    name: Literal["classify"] = Field("classify", description="One label for a text or a pair.")
    pair: bool = Field(
        False,
        description="Two texts a record (columns sentence1, sentence2) instead of one (text).",
    )
    labels: dict[str, str] | list[str] | None = Field(
        None,
        description="The labels in order, or a map from what the data says to what to show "
        "(0: negative). Default: those found in the training data, sorted.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Before the last layer. Default: the model's own."
    )


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The answer of a classifier.

    Attributes:
        label: the most probable one.
        score: its probability.
        scores: the probability of every label, in the model's order.
    """

    label: str
    score: float
    scores: dict[str, float]

    def ranked(self) -> list[tuple[str, float]]:
        """Every label with its score, best first."""
        return sorted(self.scores.items(), key=lambda item: -item[1])

    def top(self, count: int | None) -> Self:
        """With the scores of so many labels."""
        return self if count is None else replace(self, scores=dict(self.ranked()[:count]))


class Classify(Task[ClassifyOptions, ClassPrediction]):
    """See `ClassifyOptions`; the head is `SequenceClassifier`."""

    name: ClassVar[str] = "classify"
    options_type: ClassVar[type[TaskOptions]] = ClassifyOptions
    head: ClassVar[str] = "sequence_classification"
    best_by: ClassVar[str] = "accuracy"

    def __init__(self, options: ClassifyOptions, labels: Iterable[str] = ()) -> None:
        super().__init__(options)
        self.labels = list(labels)

    @property
    def inputs(self) -> dict[str, str]:
        """`text`, or `sentence1` and `sentence2`."""
        if self.options.pair:
            return {"sentence1": "the first text", "sentence2": "the second text"}
        return {"text": "the text"}

    @property
    def targets(self) -> dict[str, str]:
        """`label`."""
        return {"label": "its label"}

    def fit(self, records: Records) -> None:
        """Find the labels: those of the options, else the source's own, else all that occur.

        Raises:
            DataError: fewer than two, or one not among those of the options.
        """
        given = self.options.labels
        declared = records.categories.get("label")
        if given is not None:
            shown = list(given.values()) if isinstance(given, dict) else list(given)
            self.labels = list(dict.fromkeys(shown))
        elif declared is not None:
            self.labels = list(declared)
        else:
            found = {self.raw_label(records, row) for row in range(len(records))}
            self.labels = sorted(found, key=_numbers_first)
        if len(self.labels) < 2:
            raise DataError(
                f"{records.origin}, column 'label': only one label, {self.labels[0]!r}",
                "A classifier needs at least two; is it the right column? (data.columns.label=...)",
            )
        if len(self.labels) > 0.5 * len(records) and len(self.labels) > 20:
            raise DataError(
                f"{records.origin}, column 'label': {len(self.labels)} different labels in "
                f"{len(records)} records",
                "That looks like a column of texts: data.columns.label=COLUMN says which to use.",
            )

    def raw_label(self, records: Records, row: int) -> str:
        """The label of a record as text; the name where the source numbers its categories.

        Raises:
            DataError: there is none; names file and line.
        """
        value = records.rows[row].get("label")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or value == "" or isinstance(value, float | list | dict):
            raise DataError(
                f"{records.where(row, 'label')}: no label there ({value!r})",
                "Give every record a label, or remove the record.",
            )
        names = records.categories.get("label")
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            return str(names[value])
        return str(value)

    def label_id(self, records: Records, row: int, ids: Mapping[str, int]) -> int:
        """Which label a record has, by `ids`: the number of each.

        Raises:
            DataError: none, or one that is not known; names file and line.
        """
        raw = self.raw_label(records, row)
        given = self.options.labels
        shown = given.get(raw, raw) if isinstance(given, dict) else raw
        if shown not in ids:
            raise DataError(
                f"{records.where(row, 'label')}: unknown label '{raw}'",
                f"{did_you_mean(raw, self.labels)} The model knows: {', '.join(self.labels)}. "
                "Repair the data, or train with data that has it.",
            )
        return ids[shown]

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """One feature a record: `[CLS] text [SEP]` or `[CLS] a [SEP] b [SEP]`."""
        columns = list(self.inputs)
        texts = [[records.text(row, column) for row in rows] for column in columns]
        encoded = tokenizer.encode(
            texts[0],
            texts[1] if self.options.pair else None,
            max_length=self.options.max_length,
        )
        ids = {label: i for i, label in enumerate(self.labels)}
        for row, one in zip(rows, encoded, strict=True):
            label = {"label": self.label_id(records, row, ids)} if with_targets else {}
            yield Feature(one.ids, one.segments, label, row, one.truncated)

    def build(self, backbone: Backbone) -> nn.Module:
        """Dropout and a linear map on the pooled output."""
        return sequence_classifier(backbone, len(self.labels), self.options.dropout)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in sequences."""
        labels = batch.targets["label"]
        options = self.options
        total, parts = cross_entropy(outputs, labels, options.label_smoothing, options.z_loss)
        return Loss(total, len(labels), parts)

    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[ClassPrediction]:
        """Softmax over the labels."""
        answers = []
        for row in outputs.float().softmax(-1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            scores = dict(zip(self.labels, row, strict=True))
            answers.append(ClassPrediction(self.labels[best], row[best], scores))
        return answers

    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        """Cross-entropy."""
        labels = batch.targets["label"]
        sums = F.cross_entropy(outputs.detach().float(), labels, reduction="none")
        return EachLoss(sums, torch.ones_like(labels))

    def grade(self, answer: ClassPrediction, records: Records, row: int) -> Grade:
        """The label; its counts are those of `figures`."""
        ids = {label: i for i, label in enumerate(self.labels)}
        truth, guess = self.label_id(records, row, ids), ids[answer.label]
        counts = np.zeros((3, len(ids)))
        counts[0, truth] = truth == guess
        counts[1, truth] = counts[2, guess] = 1
        right = truth == guess
        mistakes = () if right else (f"{self.labels[truth]} taken for {answer.label}",)
        return Grade(
            *(self.labels[truth], answer.label, right, answer.score),
            mistakes,
            tuple(counts.ravel().tolist()),
        )

    def figures(self, sums: Array) -> dict[str, Array]:
        """Accuracy, F1, Matthews correlation: of each label come how often it was right, was the
        truth, was the answer."""
        right, truth, guess = np.split(sums[..., 2:], 3, axis=-1)
        return {**super().figures(sums), **class_figures(right, truth, guess)}

    def metrics(self, features: FeatureSet | None = None) -> ClassificationMetrics:
        """Accuracy, F1, Matthews correlation."""
        return ClassificationMetrics(self.labels)

    def config_entries(self) -> dict[str, Any]:
        """`id2label`, `label2id`, `problem_type`."""
        return {
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def state(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": self.labels}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """With the labels of an earlier training."""
        return type(self)(self.options, [str(label) for label in state["labels"]])

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForSequenceClassification`, with the labels of its `id2label`."""
        architectures = config.get("architectures") or [""]
        if not str(architectures[0]).endswith("ForSequenceClassification"):
            return None
        names = config.get("id2label") or {}
        count = len(names) if isinstance(names, dict) and names else config.get("num_labels", 2)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MOST_LABELS:
            raise CheckpointError(
                f"config.json: num_labels is {count!r}",
                f"Expected a whole number from 1 to {MOST_LABELS:,}.",
            )
        labels = [str(names.get(str(i), f"LABEL_{i}")) for i in range(count)]
        return cls(ClassifyOptions(max_length=usual_length(config, 512)), labels)


def _numbers_first(label: str) -> tuple[int, float, str]:
    """Sort 2 before 10, and numbers before words."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def f1_of(right: Array, truth: Array, guess: Array) -> Array:
    """F1 of each class; 0 where undefined."""
    f1: Array = 2 * right / np.maximum(truth + guess, 1)
    return f1


def class_figures(right: Array, truth: Array, guess: Array) -> dict[str, Array]:
    """Figures of one or many evaluations.

    Accuracy; F1 (of class 1 where there are two, as GLUE has it, else the macro average over the
    classes that occur); Matthews correlation (Gorodkin's for several classes).

    Args:
        right: `[..., C]`: how often each class was answered rightly.
        truth: `[..., C]`: how often it was the truth.
        guess: `[..., C]`: how often it was the answer.
    """
    f1, total, hits = f1_of(right, truth, guess), truth.sum(-1), right.sum(-1)
    seen = truth + guess > 0
    macro = (f1 * seen).sum(-1) / np.maximum(seen.sum(-1), 1)
    above = hits * total - (truth * guess).sum(-1)
    spread = (total**2 - (guess**2).sum(-1)) * (total**2 - (truth**2).sum(-1))
    return {
        "accuracy": hits / np.maximum(total, 1),
        "f1": f1[..., 1] if f1.shape[-1] == 2 else macro,
        "mcc": np.where(spread > 0, above / np.sqrt(np.where(spread > 0, spread, 1)), 0.0),
    }


class ClassificationMetrics:
    """Everything follows from the confusion matrix: memory is labels times labels."""

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        self.confusion: NDArray[np.int64] = np.zeros((len(labels), len(labels)), dtype=np.int64)

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Count one batch of logits `[B, labels]`; rows of the matrix are the truth."""
        guess = outputs.argmax(-1)
        pairs = batch.targets["label"] * len(self.labels) + guess
        counts = torch.bincount(pairs, minlength=self.confusion.size)
        self.confusion += counts.cpu().numpy().reshape(self.confusion.shape)

    def merge(self, other: Self) -> None:
        """Add another's counts."""
        self.confusion += other.confusion

    def _margins(self) -> tuple[Array, Array, Array]:
        """How often each label was right, was the truth, was the answer."""
        matrix = self.confusion.astype(float)
        return np.diag(matrix), matrix.sum(1), matrix.sum(0)

    def result(self) -> dict[str, float]:
        """See `class_figures`."""
        return {name: float(value) for name, value in class_figures(*self._margins()).items()}

    def details(self) -> dict[str, Any]:
        """The confusion matrix and the figures of each class."""
        right, truth, guess = self._margins()
        # 0 where undefined, as scikit-learn has it.
        precision, recall = right / np.maximum(guess, 1), right / np.maximum(truth, 1)
        f1 = f1_of(right, truth, guess)
        return {
            "labels": self.labels,
            "confusion": self.confusion.tolist(),
            "per_class": {
                label: {
                    "precision": float(precision[i]),
                    "recall": float(recall[i]),
                    "f1": float(f1[i]),
                    "support": int(self.confusion[i].sum()),
                }
                for i, label in enumerate(self.labels)
            },
        }
