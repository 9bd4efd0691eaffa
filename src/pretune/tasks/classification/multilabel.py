"""`multilabel`: any number of labels for a text or a pair of texts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.models.config import brief
from pretune.tasks.base import Calibrated, Loss, Prediction, TaskOptions
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.classification.counts import class_table, label_figures
from pretune.tasks.classification.label_lists import count_flags, flag, is_number, parse_list
from pretune.tasks.distillation.teachable import Comparison, compare_flags
from pretune.tasks.grading import Decision, EachLoss, Grade, Mistake, TellsTruths
from pretune.tasks.labels import (
    LabelNames,
    LabelText,
    choose_labels,
    finite,
    label_key,
    label_number,
    label_remarks,
    label_text,
    numbered,
    stored_labels,
)
from pretune.tasks.sentences import LABELS, SentenceOptions, SentenceTask
from pretune.text.terminal import in_line

#: In the place of 0 and 1 in a record of which nobody says which labels it has.
UNKNOWN = 255
#: What people put between labels instead of the separator.
OTHER_SEPARATORS = (",", ";", "，", "；", "、")


class MultilabelOptions(SentenceOptions):
    """Options of `multilabel`."""

    name: Literal["multilabel"] = Field(
        "multilabel", description="Any number of labels for a text or a pair."
    )
    labels: dict[LabelText, LabelText] | list[LabelText] | None = Field(
        None,
        description="The labels in their order, or a map from what the data say to what to show. "
        "Default: the labels that occur in the training data, sorted; of lists of 0 and 1 their "
        "places: 0, 1, ...",
    )
    separator: str = Field(
        "|", min_length=1, description="Separates labels where a record has them as text: a|b."
    )
    label_columns: list[str] | None = Field(
        None,
        min_length=1,
        description="Columns, one per label, that have 1 for records with the label and 0 for "
        "others; they replace the column `labels` and give the labels their names.",
    )
    tune_thresholds: bool = Field(
        True,
        description="Choose for each label the probability from which it is predicted, by the best "
        "F1 on the validation data. false: 0.5.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.labels is not None and self.label_columns is not None:
            raise ValueError("give labels or label_columns, not both")
        return self


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """The labels of a text.

    Attributes:
        labels: those whose probability reaches their threshold, in the model's order.
        scores: the probability of every label; each by itself, so they need not add up to 1.
    """

    labels: list[str]
    scores: dict[str, float]

    @override
    def ranked(self) -> list[tuple[str, float]]:
        return sorted(self.scores.items(), key=lambda item: -item[1])

    @property
    @override
    def given(self) -> list[str]:
        return self.labels


class Multilabel(
    SentenceTask[MultilabelOptions, LabelsPrediction], Calibrated, HasCertainty, TellsTruths
):
    """A yes or no for each of K labels."""

    name: ClassVar[str] = "multilabel"
    options_type: ClassVar[type[TaskOptions]] = MultilabelOptions
    best_by: ClassVar[str] = "micro_f1"
    problem_type: ClassVar[str] = LABELS

    def __init__(self, options: MultilabelOptions, labels: Iterable[str] = ()) -> None:
        super().__init__(options, labels)
        # The probability from which each label is predicted.
        self.thresholds = [0.5] * len(self.labels)
        # Whether the data have a list of 0 and 1, a number for each label, rather than names; None:
        # whoever trained the model does not say.
        self.flags: bool | None = None

    # Preprocessor

    @property
    @override
    def targets(self) -> dict[str, str]:
        if self.options.label_columns is not None:
            return dict.fromkeys(self.options.label_columns, "1 if it has this label, else 0")
        return {"labels": "its labels: a list, a text with | between them, or a list of 0 and 1"}

    @override
    def fit(self, records: Records) -> None:
        """Find out how labels are written, and choose them.

        Raises:
            DataError: no record has a label, or lists of 0 and 1 do not fit each other or the
                recipe's labels.
        """
        given: LabelNames | None = self.options.label_columns or self.options.labels
        width = self._flag_width(records)
        self.flags = width is not None
        if width is not None and given is None:
            given = [str(place) for place in range(width)]
        self.labels = choose_labels(given, records, "labels", self.raw_labels)
        if not self.labels:
            raise DataError(
                f"{records.origin}, column '{records.in_data('labels')}': no record has a label",
                "Is it the right column? (data.columns.labels=COLUMN)",
            )
        self.thresholds = [0.5] * len(self.labels)

    def _flag_width(self, records: Records) -> int | None:
        """Return the length of the lists of 0 and 1; None where the data have names of labels."""
        if self.options.label_columns is not None or "labels" in records.categories:
            return None
        cells = [(part, row) for part in records.with_held_back() for row in range(len(part))]
        lists = [self._items(part, row) for part, row in cells]
        width = count_flags(lists, lambda at: cells[at][0].where(cells[at][1], "labels"))
        given = self.options.labels
        if width is not None and given is not None and len(given) != width:
            raise DataError(
                f"{records.origin}, column '{records.in_data('labels')}': lists of {width} numbers "
                f"0 or 1, but task.labels has {len(given)} labels",
                "Give one for each number, in their order.",
            )
        return width

    def _places(self) -> list[str]:
        """Return the label that each place of a list of 0 and 1 stands for, as the data spell it.

        The keys of a map may be the places themselves.
        """
        given = self.options.labels
        places = [str(place) for place in range(len(given or ()))]
        if isinstance(given, Mapping) and set(given) == set(places):
            return places
        return list(self.labels if given is None else given)

    def _items(self, records: Records, row: int) -> list[Any]:
        """Return the items of a record's list of labels: a list, a text, or a single number."""
        value = records.rows[row].get("labels")
        if isinstance(value, np.ndarray):  # as pandas has lists that come from Parquet
            value = value.tolist()
        if isinstance(value, str):
            if (listed := parse_list(value)) is not None:
                return listed
            return [part.strip() for part in value.split(self.options.separator) if part.strip()]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return [value]
        if not isinstance(value, list):
            raise DataError(
                f"{records.where(row, 'labels')}: expected labels, found {value!r}",
                'Give a list (["a", "b"], [] for none) or a text with '
                f"{self.options.separator} between them; or name task.label_columns.",
            )
        return value

    def raw_labels(self, records: Records, row: int) -> list[str]:
        """Return a record's labels as the data spell them."""
        if self.options.label_columns is not None:
            return [name for name in self.options.label_columns if _flag(records, row, name)]
        items = self._items(records, row)
        flags = [flag(item) for item in items]
        # A model that tells how its data were written reads all data in that way; for any other
        # one, as many numbers as there are labels are a list of 0 and 1.
        places = self._places()
        fits = None not in flags and len(flags) == len(places) > 1
        if fits and self.flags is not False:
            return list(itertools.compress(places, flags))
        twice = len(set(flags)) < len(flags)
        if (fits and twice) or (self.flags and any(map(is_number, items))):
            expected = (
                f"{len(places)} numbers 0 or 1, for the labels {', '.join(places)}"
                if self.flags
                else f"names of labels, such as {self.labels[0]}, as in training"
            )
            raise DataError(
                f"{records.where(row, 'labels')}: expected {expected}; found {items!r}",
                "Write the labels as in the data that the model was trained on.",
            )
        return [label_text(records, row, "labels", item) for item in items]

    @override
    def remarks(self, records: Records) -> Iterable[str]:
        yield from self.form(records)
        yield from label_remarks(self.labels, self.options.labels, records, self.raw_labels)
        # How many labels a record has, where that is remarkable.
        sizes = [len(set(self.raw_labels(records, row))) for row in range(len(records))]
        if (without := sizes.count(0)) > 0:
            yield f"{without:,} of {len(records):,} records have no label"
        if min(sizes, default=0) == len(self.labels):
            yield "every record has every label: there is nothing to learn"

    def form(self, records: Records) -> Iterable[str]:
        """Yield lines about the form in which the data have labels, where it may be mistaken."""
        if self.flags:
            names = "in the order of task.labels"
            if self.options.labels is None:
                names = "named by their places; task.labels=[...] gives them names"
            yield f"labels: lists of 0 and 1, a number for each of {len(self.labels)}, {names}"
        elif self.options.label_columns is None:
            yield from self._doubts(records)

    def _doubts(self, records: Records) -> Iterable[str]:
        """Yield lines about texts that are lists, or that have another separator."""
        texts = [text for row in records.rows if isinstance(text := row.get("labels"), str)]
        written = [text for text in texts if parse_list(text) is not None]
        if written:
            yield f"labels: {len(written):,} lists written as text, such as {_shown(written[0])}"
        # A mark between words, where the separator never occurs.
        separator = self.options.separator
        if any(separator in text for text in texts) or len(written) == len(texts):
            yield from self._joined_labels()
            return
        for mark in OTHER_SEPARATORS:
            marked = [text for text in texts if mark in text and parse_list(text) is None]
            if marked:
                yield (
                    f"labels: no text has {separator!r} between labels, but {len(marked):,} have "
                    f"{mark!r}, such as {_shown(marked[0])}, and are read as one label each; "
                    f"task.separator={mark!r} reads them as several"
                )
                return

    def _joined_labels(self) -> Iterable[str]:
        """Yield a line about a label that holds another one between marks, as in `a` and `a, b`."""
        known = {*self.labels}
        for mark, label in itertools.product(OTHER_SEPARATORS, self.labels):
            parts = [part.strip() for part in label.split(mark)]
            if len(parts) > 1 and (part := next((p for p in parts if p in known), None)):
                yield (
                    f"labels: {_shown(label)!r} is read as one label, though {_shown(part)!r} is "
                    f"one too; if there are several in it, put {self.options.separator!r} between "
                    "them, or list them one by one"
                )
                return

    @override
    def check_target(self, records: Records, row: int) -> None:
        self.raw_labels(records, row)

    @override
    def strata(self, records: Records) -> list[list[str]]:
        # How labels are written shows in all records together.
        task = type(self)(self.options)
        task.fit(records)
        return [[*map(label_key, task.raw_labels(records, row))] for row in range(len(records))]

    def _flags(self, records: Records, row: int, ids: dict[str, int]) -> Array:
        """Return `[K]` uint8: 1 for each label that a record has."""
        flags = np.zeros(len(ids), dtype=np.uint8)
        for raw in self.raw_labels(records, row):
            flags[label_number(records, row, "labels", raw, self.options.labels, ids)] = 1
        return flags

    @override
    def feature_key(self) -> Any:
        return [*super().feature_key(), self.flags]

    @override
    def target_reader(self, records: Records) -> Callable[[int], dict[str, Any]]:
        ids = numbered(self.labels)
        return lambda row: {"labels": self._flags(records, row, ids)[None]}

    # Head

    @override
    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        """Compute the binary cross-entropy; its terms are sequences times labels."""
        truth, logits = batch.targets["labels"].float(), outputs.float()
        count = truth.numel()
        if (name := self.options.criterion) is not None:
            from pretune.tasks.own_losses import own_loss  # few need it

            return own_loss(name, logits, truth, _known(batch))
        if self.unlabelled:
            known = _known(batch)
            truth, logits = truth[known], logits[known]
        return Loss(F.binary_cross_entropy_with_logits(logits, truth, reduction="sum"), count)

    # Learning from a teacher

    @override
    def has_label(self, records: Records, row: int) -> bool:
        """Whether it is known which labels a record has; an empty text says that it has none."""
        if self.options.label_columns is not None:
            return super().has_label(records, row)
        return records.rows[row].get("labels") is not None

    @override
    def no_label(self) -> dict[str, Any]:
        return {"labels": np.full((1, len(self.labels)), UNKNOWN, dtype=np.uint8)}

    @override
    def terms(self, batch: PackedBatch) -> Tensor:
        """Return the number of labels for each feature."""
        return super().terms(batch) * len(self.labels)

    @override
    def soften(self, outputs: Tensor, batch: PackedBatch, temperature: float) -> Tensor:
        """Return the probability of each label, `[B, K]`, at the temperature."""
        return (outputs.float() / temperature).sigmoid()

    @override
    def compare(
        self, outputs: Tensor, soft: Tensor, batch: PackedBatch, temperature: float
    ) -> Comparison:
        return compare_flags(outputs, soft, temperature)

    # Answers

    @override
    def predict(self, outputs: Tensor, batch: PackedBatch) -> list[LabelsPrediction]:
        answers = []
        for row in outputs.float().sigmoid().tolist():
            pairs = zip(self.labels, row, self.thresholds, strict=True)
            predicted = [label for label, score, threshold in pairs if score >= threshold]
            answers.append(LabelsPrediction(predicted, dict(zip(self.labels, row, strict=True))))
        return answers

    @override
    def certainty(self, outputs: Tensor, batch: PackedBatch, answered: Tensor) -> Tensor:
        """Return the log-probability of all labels that are given, and of none of the others."""
        logits = outputs.float()
        given = answered.float().sigmoid() >= logits.new_tensor(self.thresholds)
        return F.logsigmoid(torch.where(given, logits, -logits)).sum()

    # Scorer

    @override
    def each_loss(self, outputs: Tensor, batch: PackedBatch) -> EachLoss:
        truth = batch.targets["labels"].float()
        each = F.binary_cross_entropy_with_logits(outputs.detach().float(), truth, reduction="none")
        return EachLoss(each.sum(1), torch.full((len(truth),), truth.shape[1]))

    @override
    def grader(self, records: Records) -> Callable[[LabelsPrediction, int], Grade]:
        ids = numbered(self.labels)

        def grade(answer: LabelsPrediction, row: int) -> Grade:
            # What each label should be, and what it was predicted to be.
            truth = self._flags(records, row, ids).astype(bool).tolist()
            predicted = [label in answer.labels for label in self.labels]
            # Each label is a decision of its own, between no (0) and yes (1).
            decisions, mistakes = [], []
            for label, true, given in zip(self.labels, truth, predicted, strict=True):
                yes = answer.scores[label]
                confidence = yes if given else 1 - yes
                decisions.append(
                    Decision(confidence, true == given, (1 - yes, yes), int(given), int(true))
                )
                if true != given:
                    mistakes.append(Mistake("missed" if true else "spurious", label, confidence))
            both = np.logical_and(truth, predicted)
            # For each label as in `counts.py`; then whether all labels are right, and 1.
            counts = (*both, *truth, *predicted, not mistakes, True)
            return Grade(
                truth=", ".join(itertools.compress(self.labels, truth)),
                answer=", ".join(answer.labels),
                right=not mistakes,
                decisions=tuple(decisions),
                mistakes=tuple(mistakes),
                counts=tuple(map(float, counts)),
            )

        return grade

    @override
    def answers_and_truths(
        self, outputs: Tensor, batch: PackedBatch
    ) -> tuple[list[list[str]], list[list[str] | None]]:
        """Return lists of labels, in the model's order."""
        known, flags = _known(batch).tolist(), batch.targets["labels"].tolist()
        truths = [
            [*itertools.compress(self.labels, row)] if has else None
            for has, row in zip(known, flags, strict=True)
        ]
        return [answer.labels for answer in self.predict(outputs, batch)], truths

    @override
    def scores_and_targets(self, outputs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        return outputs.float().sigmoid(), batch.targets["labels"].long()

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        right, truth, predicted = np.split(sums[..., 2:-2], 3, axis=-1)
        return {
            **super().figures(sums),
            **label_figures(right, truth, predicted),
            "exact_match": sums[..., -2] / np.maximum(sums[..., -1], 1),
        }

    @override
    def metrics(self, features: Features | None = None) -> MultilabelMetrics:
        return MultilabelMetrics(self.labels, self.thresholds)

    @override
    def calibrate(self, metrics: MultilabelMetrics) -> None:
        if self.options.tune_thresholds:
            self.thresholds = metrics.thresholds = metrics.best_thresholds()

    @override
    def restore_calibration(self, state: Mapping[str, Any]) -> None:
        if self.options.tune_thresholds:
            self.thresholds = _thresholds(state)

    # Described

    @override
    def state(self) -> dict[str, Any]:
        # Data that have names of labels need no entry: files are as they were before there was one.
        flags = {} if self.flags is False else {"flags": self.flags}
        return {"labels": self.labels, "thresholds": self.thresholds, **flags}

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        task = type(self)(self.options, stored_labels(state["labels"]))
        task.thresholds = _thresholds(state)
        task.flags = state.get("flags", False)
        if task.flags not in (True, False, None):
            raise ValueError(f"flags is {brief(task.flags)}, not true or null")
        if len(task.thresholds) != len(task.labels):
            raise ValueError("one threshold a label")
        return task


def _known(batch: PackedBatch) -> Tensor:
    """Return `[B]` bool: which records have labels, or none on purpose."""
    return batch.targets["labels"][:, 0] != UNKNOWN


def _shown(text: str) -> str:
    return in_line(brief(text))


def _thresholds(state: Mapping[str, Any]) -> list[float]:
    return [finite(value, "one of thresholds") for value in state["thresholds"]]


def _flag(records: Records, row: int, column: str) -> bool:
    """Return whether a column says yes."""
    value = records.rows[row].get(column)
    yes = flag(value)
    if yes is None:
        raise DataError(
            f"{records.where(row, column)}: expected 0 or 1, found {value!r}",
            "Each of task.label_columns has 1 for a record with that label, 0 for others.",
        )
    return yes


class MultilabelMetrics:
    """Micro and macro F1, and exact match, for K labels.

    Thresholds are chosen from all probabilities at once, so all are kept: 5 bytes a decision.
    """

    def __init__(self, labels: list[str], thresholds: list[float]) -> None:
        self.labels, self.thresholds = labels, thresholds
        self._scores: list[Array] = []
        self._truth: list[Array] = []

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Add one batch of logits `[B, K]`; records without labels do not count."""
        known = _known(batch)
        self._scores.append(outputs[known].float().sigmoid().cpu().numpy())
        self._truth.append(batch.targets["labels"][known].bool().cpu().numpy())

    def merge(self, other: Self) -> None:
        """Add the decisions of another evaluation."""
        self._scores += other._scores
        self._truth += other._truth

    def _all(self) -> tuple[Array, Array]:
        """Return all probabilities `[N, K]`, in float64 as the thresholds are, and the truth."""
        none = np.empty((0, len(self.labels)))
        truth = np.concatenate([none.astype(bool), *self._truth])
        return np.concatenate([none, *self._scores]), truth

    def best_thresholds(self) -> list[float]:
        """Return for each label the threshold with the best F1 so far."""
        scores, truth = self._all()
        return [best_threshold(scores[:, i], truth[:, i]) for i in range(len(self.labels))]

    def _counts(self) -> tuple[Array, Array, Array, float]:
        """Count `[K]` right, true and predicted labels; and the share of exact matches."""
        scores, truth = self._all()
        predicted = scores >= np.asarray(self.thresholds)
        exact = float((predicted == truth).all(1).mean()) if len(truth) else 0.0
        return (predicted & truth).sum(0), truth.sum(0), predicted.sum(0), exact

    def result(self) -> dict[str, float]:
        """Compute the figures of `label_figures`, and how often all labels of a text are right."""
        *counts, exact = self._counts()
        figures = {name: float(value) for name, value in label_figures(*counts).items()}
        return {**figures, "exact_match": exact}

    def details(self) -> dict[str, Any]:
        """Return the figures of each label, with its threshold."""
        *counts, _ = self._counts()
        table = class_table(self.labels, *counts)
        thresholds = zip(self.labels, self.thresholds, strict=True)
        return {"per_class": {label: {**table[label], "threshold": at} for label, at in thresholds}}


def best_threshold(scores: Array, truth: Array) -> float:
    """Return the threshold on probabilities `[N]` with the best F1, by the truth `[N]`, bool.

    That is 0.5 where no other is better, or nothing is true; else the middle between two scores.
    """
    if not truth.any():
        return 0.5
    # Candidates: all places between two different scores, in falling order.
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    lower = np.append(scores[1:], 0.0)
    # A threshold can part the first k scores from the others only where the next score differs.
    ends = np.flatnonzero(np.append(scores[:-1] > scores[1:], True))
    # F1 if the first k are a yes: 2 * right / (k + all true ones).
    f1 = 2 * np.cumsum(truth)[ends] / (ends + 1 + truth.sum())
    # Of the best places, take the one nearest 0.5.
    ends = ends[f1 == f1.max()]
    within = (scores[ends] >= 0.5) & (lower[ends] < 0.5)
    places = np.where(within, 0.5, (scores[ends] + lower[ends]) / 2)
    return float(places[np.argmin(np.abs(places - 0.5))])
