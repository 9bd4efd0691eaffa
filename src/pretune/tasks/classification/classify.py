"""Classification of single texts and of pairs, into two or more classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError, did_you_mean
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import Loss, Prediction, Task, TaskOptions, UsesTokenizer, usual_length
from pretune.tasks.grading import Decision, EachLoss, Grade, Mistake
from pretune.tasks.labels import LabelText, label_number, label_text, numbers_first, shown_labels
from pretune.tasks.losses import CrossEntropyOptions, cross_entropy
from pretune.tasks.sentences import (
    CLASSES,
    SentenceOptions,
    encode_sentences,
    label_entries,
    published_kind,
    sentence_columns,
    separate_pairs,
)
from pretune.tasks.stated import finite, stored_labels
from pretune.tokenizers.tokenizer import Tokenizer

#: What an example weighs.
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ClassifyOptions(CrossEntropyOptions, SentenceOptions):
    """Options of `classify`."""

    name: Literal["classify"] = Field("classify", description="One label for a text or a pair.")
    labels: dict[LabelText, LabelText] | list[LabelText] | None = Field(
        None,
        description="The labels in order, or a map from what the data says to what to show "
        "(0: negative). Default: those found in the training data, sorted.",
    )
    class_weights: Literal["auto"] | dict[LabelText, Weight] | None = Field(
        None,
        description="What an example of each label weighs in the loss: {spam: 5} (others weigh 1), "
        "or auto: in inverse proportion to how often it occurs.",
    )
    focal_gamma: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Focal loss: examples that are right already count less (2 is usual; 0: off).",
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


class Classify(Task[ClassifyOptions, ClassPrediction], UsesTokenizer):
    """See `ClassifyOptions`; the head is `SequenceClassifier`."""

    name: ClassVar[str] = "classify"
    options_type: ClassVar[type[TaskOptions]] = ClassifyOptions
    head: ClassVar[str] = "sequence_classification"
    best_by: ClassVar[str] = "accuracy"

    def __init__(self, options: ClassifyOptions, labels: Iterable[str] = ()) -> None:
        super().__init__(options)
        self.labels = list(labels)
        #: What an example of each label weighs; None where all weigh 1.
        self.weights: list[float] | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """`text`, or `sentence1` and `sentence2`."""
        return sentence_columns(self.options)

    @property
    def targets(self) -> dict[str, str]:
        """`label`."""
        return {"label": "its label"}

    def bind(self, tokenizer: Tokenizer) -> None:
        """Pairs need a token between their texts."""
        separate_pairs(self.options, tokenizer)

    def fit(self, records: Records) -> None:
        """Find the labels, and what each weighs.

        Raises:
            DataError: fewer than two; one not among those of the options; a weight of no label.
        """
        self._find_labels(records)
        self.weights = self._class_weights(records)

    def _class_weights(self, records: Records) -> list[float] | None:
        """By `class_weights`; of `auto` those of scikit-learn's "balanced".

        A label's weight is `N / (K * n)` of `N` records, `n` with it, and `K` labels that occur
        (King & Zeng 2001): over the training data the mean weight is 1. One that never occurs
        weighs 1.
        """
        given = self.options.class_weights
        if given is None:
            return None
        if given != "auto":
            for label in given:
                if label not in self.labels:
                    raise DataError(
                        f"task.class_weights: no label is called '{label}'",
                        f"{did_you_mean(label, self.labels)} There are: {', '.join(self.labels)}.",
                    )
            return [given.get(label, 1.0) for label in self.labels]
        ids = {label: i for i, label in enumerate(self.labels)}
        found = [self.label_id(records, row, ids) for row in range(len(records))]
        counts = np.bincount(found, minlength=len(self.labels))
        occurring = np.count_nonzero(counts)
        return [len(records) / (occurring * n) if n else 1.0 for n in counts.tolist()]

    def _find_labels(self, records: Records) -> None:
        """Find the labels: those of the options, else the source's own, else all that occur.

        Raises:
            DataError: fewer than two, or one not among those of the options.
        """
        given = self.options.labels
        declared = records.categories.get("label")
        if given is not None:
            self.labels = shown_labels(given)
        elif declared is not None:
            self.labels = list(declared)
        else:
            found = {self.raw_label(records, row) for row in range(len(records))}
            self.labels = sorted(found, key=numbers_first)
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
        return label_text(records, row, "label", records.rows[row].get("label"))

    def label_id(self, records: Records, row: int, ids: Mapping[str, int]) -> int:
        """Which label a record has, by `ids`: the number of each.

        Raises:
            DataError: none, or one that is not known; names file and line.
        """
        raw = self.raw_label(records, row)
        return label_number(records, row, "label", raw, self.options.labels, ids)

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """One feature a record: `[CLS] text [SEP]` or `[CLS] a [SEP] b [SEP]`."""
        ids = {label: i for i, label in enumerate(self.labels)}
        for row, one in encode_sentences(self.options, records, rows, tokenizer):
            label = {"label": self.label_id(records, row, ids)} if with_targets else {}
            yield Feature(one.ids, one.segments, label, row, one.truncated)

    def build(self, backbone: Backbone) -> nn.Module:
        """Dropout and a linear map on the pooled output."""
        return build_head(backbone, self.head, len(self.labels), dropout=self.options.dropout)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in sequences.

        With class weights too the count is of sequences, not of weights as in torch's weighted
        mean: the mean over a batch then estimates that over the data, whatever labels the batch
        happens to hold, and parts of a batch add up.
        """
        labels = batch.targets["label"]
        options = self.options
        total, parts = cross_entropy(
            outputs,
            labels,
            options.label_smoothing,
            options.z_loss,
            class_weights=self.weights,
            focal_gamma=options.focal_gamma,
        )
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

    def grader(self, records: Records) -> Callable[[ClassPrediction, int], Grade]:
        """The label; of each label counts how often it was right, was the truth, was the answer."""
        ids = {label: i for i, label in enumerate(self.labels)}

        def grade(answer: ClassPrediction, row: int) -> Grade:
            truth, guess = self.label_id(records, row, ids), ids[answer.label]
            right, label = truth == guess, self.labels[truth]
            counts = [0.0] * (3 * len(ids))
            counts[truth] = float(right)
            counts[len(ids) + truth] = counts[2 * len(ids) + guess] = 1.0
            mistake = Mistake("confused", f"{label} taken for {answer.label}", answer.score)
            return Grade(
                truth=label,
                answer=answer.label,
                right=right,
                decisions=(
                    Decision(answer.score, right, tuple(answer.scores.values()), guess, truth),
                ),
                mistakes=() if right else (mistake,),
                counts=tuple(counts),
            )

        return grade

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss, accuracy, F1, Matthews correlation."""
        right, truth, guess = np.split(sums[..., 2:], 3, axis=-1)
        return {**super().figures(sums), **class_figures(right, truth, guess)}

    def metrics(self, features: Features | None = None) -> ClassificationMetrics:
        """Accuracy, F1, Matthews correlation."""
        return ClassificationMetrics(self.labels)

    def config_entries(self) -> dict[str, Any]:
        """`id2label`, `label2id`, `problem_type`."""
        return label_entries(self.labels, CLASSES)

    def output_meaning(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": self.labels}

    def state(self) -> dict[str, Any]:
        """The labels, and their weights where they differ."""
        weights = {} if self.weights is None else {"weights": self.weights}
        return {**self.output_meaning(), **weights}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """With the labels and weights of an earlier training."""
        task = type(self)(self.options, stored_labels(state["labels"]))
        if (weights := state.get("weights")) is not None:
            task.weights = [finite(weight, "one of weights") for weight in weights]
        return task

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForSequenceClassification`, with the labels of its `id2label`."""
        found = published_kind(config)
        if found is None or found[0] != CLASSES:
            return None
        return cls(ClassifyOptions(max_length=usual_length(config, 512)), found[1])


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
        self.confusion: Array = np.zeros((len(labels), len(labels)), dtype=np.int64)

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
