"""Any number of labels for a text or a pair: none, one or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import Calibrated, Loss, Prediction, Task, UsesTokenizer, usual_length
from pretune.tasks.classification.multilabel_metrics import MultilabelMetrics, decision_figures
from pretune.tasks.grading import Decision, EachLoss, Grade, Mistake
from pretune.tasks.labels import label_number, label_text, numbers_first, shown_labels
from pretune.tasks.sentences import (
    LABELS,
    SentenceOptions,
    encode_sentences,
    label_entries,
    published_kind,
    sentence_columns,
    separate_pairs,
)
from pretune.tasks.stated import finite, stored_labels
from pretune.tokenizers.tokenizer import Tokenizer


class MultilabelOptions(SentenceOptions):
    """Options of `multilabel`."""

    name: Literal["multilabel"] = Field(
        "multilabel", description="Any number of labels for a text or a pair."
    )
    labels: dict[str, str] | list[str] | None = Field(
        None,
        description="The labels in order, or a map from what the data says to what to show. "
        "Default: those found in the training data, sorted.",
    )
    separator: str = Field(
        "|", min_length=1, description="Between labels, where a record has them as one text: a|b."
    )
    label_columns: list[str] | None = Field(
        None,
        min_length=1,
        description="Columns that say with 1 or 0 whether a label is there, in place of the column "
        "`labels`; the labels are called as they are.",
    )
    tune_thresholds: bool = Field(
        True,
        description="Choose for each label the probability from which it is given: the one with "
        "the best F1 on the validation data. false: 0.5.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.labels is not None and self.label_columns is not None:
            raise ValueError("give labels or label_columns, not both")
        return self


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """The answer for one text.

    Attributes:
        labels: those whose probability reaches their threshold, in the model's order.
        scores: the probability of every label.
    """

    labels: list[str]
    scores: dict[str, float]

    def ranked(self) -> list[tuple[str, float]]:
        """Every label with its score, best first."""
        return sorted(self.scores.items(), key=lambda item: -item[1])


class Multilabel(Task[MultilabelOptions, LabelsPrediction], Calibrated, UsesTokenizer):
    """A yes or no for each label; see `MultilabelOptions`."""

    name: ClassVar[str] = "multilabel"
    options_type: ClassVar[type[MultilabelOptions]] = MultilabelOptions
    head: ClassVar[str] = "sequence_classification"
    best_by: ClassVar[str] = "micro_f1"

    def __init__(self, options: MultilabelOptions, labels: Iterable[str] = ()) -> None:
        super().__init__(options)
        self.labels = list(labels)
        self.thresholds = [0.5] * len(self.labels)

    @property
    def inputs(self) -> dict[str, str]:
        """`text`, or `sentence1` and `sentence2`."""
        return sentence_columns(self.options)

    @property
    def targets(self) -> dict[str, str]:
        """`labels`, or a column of 0 and 1 for each."""
        if self.options.label_columns is not None:
            return dict.fromkeys(self.options.label_columns, "1 if it has this label, else 0")
        return {"labels": "its labels: a list, or a text with | between them"}

    def bind(self, tokenizer: Tokenizer) -> None:
        """Pairs need a token between their texts."""
        separate_pairs(self.options, tokenizer)

    def fit(self, records: Records) -> None:
        """Find the labels: those of the options, else the source's own, else all that occur.

        Raises:
            DataError: there are none.
        """
        options = self.options
        if options.label_columns is not None:
            self.labels = shown_labels(options.label_columns)
        elif options.labels is not None:
            self.labels = shown_labels(options.labels)
        elif "labels" in records.categories:
            self.labels = list(records.categories["labels"])
        else:
            found = {raw for row in range(len(records)) for raw in self.raw_labels(records, row)}
            self.labels = sorted(found, key=numbers_first)
        if not self.labels:
            raise DataError(
                f"{records.origin}, column 'labels': no record has a label",
                "Is it the right column? (data.columns.labels=COLUMN)",
            )
        self.thresholds = [0.5] * len(self.labels)

    def raw_labels(self, records: Records, row: int) -> list[str]:
        """The labels of a record as the data has them, maybe none.

        Raises:
            DataError: there is nothing that could be labels; names file and line.
        """
        if self.options.label_columns is not None:
            return [name for name in self.options.label_columns if _flag(records, row, name)]
        value = records.rows[row].get("labels")
        if isinstance(value, str):
            value = [part.strip() for part in value.split(self.options.separator) if part.strip()]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list):
            raise DataError(
                f"{records.where(row, 'labels')}: expected labels, found {value!r}",
                'Give a list (["a", "b"], [] for none) or a text with '
                f"{self.options.separator} between them; or name task.label_columns.",
            )
        return [label_text(records, row, "labels", one) for one in value]

    def flags(self, records: Records, row: int, ids: Mapping[str, int]) -> Array:
        """`[K]`: 1 for each label that a record has.

        Raises:
            DataError: one is not known; names file and line.
        """
        found = np.zeros(len(ids), dtype=np.uint8)
        for raw in self.raw_labels(records, row):
            found[label_number(records, row, "labels", raw, self.options.labels, ids)] = 1
        return found

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """One feature a record: `[CLS] text [SEP]` or `[CLS] a [SEP] b [SEP]`."""
        ids = {label: i for i, label in enumerate(self.labels)}
        for row, one in encode_sentences(self.options, records, rows, tokenizer):
            flags = {"labels": self.flags(records, row, ids)[None]} if with_targets else {}
            yield Feature(one.ids, one.segments, flags, row, one.truncated)

    def build(self, backbone: Backbone) -> nn.Module:
        """The family's classifier with one output a label."""
        return build_head(backbone, self.head, len(self.labels), dropout=self.options.dropout)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Binary cross-entropy, counted in decisions: sequences times labels, as transformers'."""
        truth = batch.targets["labels"].float()
        total = F.binary_cross_entropy_with_logits(outputs.float(), truth, reduction="sum")
        return Loss(total, truth.numel())

    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[LabelsPrediction]:
        """A sigmoid for each label, and those that reach their thresholds."""
        answers = []
        for row in outputs.float().sigmoid().tolist():
            pairs = zip(self.labels, row, self.thresholds, strict=True)
            given = [label for label, score, least in pairs if score >= least]
            answers.append(LabelsPrediction(given, dict(zip(self.labels, row, strict=True))))
        return answers

    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        """Binary cross-entropy, counted in labels."""
        truth = batch.targets["labels"].float()
        each = F.binary_cross_entropy_with_logits(outputs.detach().float(), truth, reduction="none")
        return EachLoss(each.sum(1), torch.full((len(truth),), truth.shape[1]))

    def grader(self, records: Records) -> Callable[[LabelsPrediction, int], Grade]:
        """The labels; of each counts whether it was right, true, given; then exact match and 1."""
        ids = {label: i for i, label in enumerate(self.labels)}

        def grade(answer: LabelsPrediction, row: int) -> Grade:
            truth = self.flags(records, row, ids).astype(bool).tolist()
            guess = [label in answer.labels for label in self.labels]
            decisions, mistakes = [], []
            for label, true, given in zip(self.labels, truth, guess, strict=True):
                yes = answer.scores[label]
                sure = yes if given else 1 - yes
                decisions.append(
                    Decision(sure, true == given, (1 - yes, yes), int(given), int(true))
                )
                if true != given:
                    mistakes.append(Mistake("missed" if true else "spurious", label, sure))
            both = np.logical_and(truth, guess)
            named = [label for label, true in zip(self.labels, truth, strict=True) if true]
            return Grade(
                truth=", ".join(named),
                answer=", ".join(answer.labels),
                right=not mistakes,
                decisions=tuple(decisions),
                mistakes=tuple(mistakes),
                counts=tuple(1.0 if n else 0.0 for n in (*both, *truth, *guess, not mistakes, 1)),
            )

        return grade

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss, micro and macro F1, exact match."""
        *counts, exact, count = np.moveaxis(sums[..., 2:], -1, 0)
        right, true, given = np.split(np.stack(counts, -1), 3, axis=-1)
        found = {**super().figures(sums), **decision_figures(right, given, true)}
        return {**found, "exact_match": exact / np.maximum(count, 1)}

    def metrics(self, features: Features | None = None) -> MultilabelMetrics:
        """Micro and macro F1, exact match."""
        return MultilabelMetrics(self.labels, self.thresholds)

    def calibrate(self, metrics: MultilabelMetrics) -> None:
        """Take the thresholds that are best for what the metrics have seen."""
        if self.options.tune_thresholds:
            self.thresholds = metrics.thresholds = metrics.best_thresholds()

    def restore_calibration(self, state: Mapping[str, Any]) -> None:
        """The thresholds of the checkpoint."""
        if self.options.tune_thresholds:
            self.thresholds = [finite(value, "one of thresholds") for value in state["thresholds"]]

    def config_entries(self) -> dict[str, Any]:
        """`id2label`, `label2id`, `problem_type`."""
        return label_entries(self.labels, LABELS)

    def output_meaning(self) -> dict[str, Any]:
        """The labels."""
        return {"labels": self.labels}

    def state(self) -> dict[str, Any]:
        """The labels, and from which probability each is given."""
        return {**self.output_meaning(), "thresholds": self.thresholds}

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """With the labels and thresholds of an earlier training."""
        task = type(self)(self.options, stored_labels(state["labels"]))
        thresholds = [finite(value, "one of thresholds") for value in state["thresholds"]]
        if len(thresholds) != len(task.labels):
            raise ValueError("one threshold a label")
        task.thresholds = thresholds
        return task

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForSequenceClassification` for several labels."""
        found = published_kind(config)
        if found is None or found[0] != LABELS:
            return None
        return cls(MultilabelOptions(max_length=usual_length(config, 512)), found[1])


def _flag(records: Records, row: int, column: str) -> bool:
    """Whether a column says yes.

    Raises:
        DataError: it says neither 0 nor 1; names file and line.
    """
    value = records.rows[row].get(column)
    known = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
    found = known.get(str(value).strip().lower())
    if found is None:
        raise DataError(
            f"{records.where(row, column)}: expected 0 or 1, found {value!r}",
            "Each of task.label_columns says with 1 or 0 whether the record has that label.",
        )
    return found
