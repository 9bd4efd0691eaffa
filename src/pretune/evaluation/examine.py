"""The examples of a data set one by one: each with its loss, its answer and its grade."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pretune.bundle.bundle import Bundle
from pretune.data.arrays import Array
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.data.columns import as_text
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.inference.predict import task_of
from pretune.inference.reference import compared
from pretune.inference.runtime import choose_device, precision_context
from pretune.tasks.base import AnyTask, Head, Preprocessor, ReadsStream, ReadsWindows, drawn
from pretune.tasks.features import record_features
from pretune.tasks.grading import EachLoss, Grade
from pretune.training.validation import evaluate_features


@dataclass(frozen=True)
class Example:
    """One example with its loss and its answer."""

    record: int
    features: tuple[int, ...]
    loss: float  # sum of its terms, in nats (for `regress` in squared units of the score)
    terms: int
    tokens: int  # for a text in several windows, of all of them
    grade: Grade

    @property
    def mean_loss(self) -> float:
        """The mean loss of a term; NaN without terms."""
        return self.loss / self.terms if self.terms else float("nan")


@dataclass(frozen=True)
class Examined:
    """A data set, examined with one model."""

    bundle: Bundle
    records: Records
    features: FeatureSet
    examples: tuple[Example, ...]
    losses: Array  # `[features]` mean loss of a term in each sequence
    metrics: dict[str, float]  # as `evaluate` gives them
    details: dict[str, Any]

    @property
    def task(self) -> AnyTask:
        """The task of the model."""
        return task_of(self.bundle)

    @cached_property
    def sums(self) -> Array:
        """`[N, 2 + K]` float64: the numbers of each example that `Task.figures` takes sums of."""
        rows = [(e.loss, e.terms, *e.grade.counts) for e in self.examples]
        return np.array(rows, dtype=np.float64)

    @property
    def has_losses(self) -> bool:
        """Whether examples have losses of their own; a policy learns from whole rollouts."""
        return any(example.terms for example in self.examples)

    def worst_first(self) -> list[int]:
        """Return the numbers of the examples by their mean loss, the highest first."""
        losses = np.nan_to_num([-example.mean_loss for example in self.examples], nan=np.inf)
        return [int(i) for i in np.argsort(losses, kind="stable")]

    def places(self) -> tuple[str, list[int]]:
        """Return `line` or `row`, and the number (1-based) of each example in its file."""
        records = self.records
        if records.lines is not None:
            lines = records.lines
            return "line", [lines[example.record] for example in self.examples]
        numbers = records.numbers or range(1, len(records) + 1)
        return "row", [numbers[example.record] for example in self.examples]

    def text(self, number: int) -> dict[str, str]:
        """Return what people see of an example: its columns, or the text of its sequence."""
        example, task = self.examples[number], self.task
        if isinstance(task, ReadsStream):
            begin, end = self.features.starts[example.features[0] :][:2]
            ids = self.features.tokens[begin:end].tolist()
            return {"text": self.bundle.tokenizer.decode(ids, skip_special=False)}
        row = self.records.rows[example.record]
        return {name: _as_text(row[name]) for name in task.shown if name in row}


def _as_text(value: Any) -> str:
    """Return a cell as people read it; a list as its words, characters or texts."""
    if not isinstance(value, list):
        return "" if value is None else str(value)
    if any(isinstance(item, Mapping) for item in value):  # the messages of a conversation
        return as_text(value) or ""
    texts = [str(item) for item in value]
    if any(" " in text for text in texts):
        return " | ".join(texts)
    return ("" if all(len(text) == 1 for text in texts) else " ").join(texts)


def features_to_judge(bundle: Bundle, records: Records, device: torch.device) -> FeatureSet:
    """Make features of labelled records, with what the task compares its model with.

    Raises:
        DataError: a record cannot be used, or none has anything to ask the model about.
    """
    features = record_features(task_of(bundle), records, bundle.tokenizer, evaluation=True)
    if not len(features):
        raise DataError(
            f"{records.origin}: no record has anything to ask the model about", "Name other data."
        )
    return compared(bundle, features, device)


def examine(
    bundle: Bundle,
    records: Records,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> Examined:
    """Run a model over labelled records and keep the result of each.

    `progress` is called with the number of sequences done and their total number. A model without
    a task, or a record that cannot be used, raises a PretuneError.
    """
    task, target = task_of(bundle), choose_device(device)
    features = features_to_judge(bundle, records, target)
    # By feature: its answer, the sum of its losses, the number of their terms.
    model = bundle.model.to(target).eval()
    parts: dict[int, Any] = {}
    sums, terms = np.zeros(len(features)), np.zeros(len(features), dtype=np.int64)

    # One evaluation gives the figures of all; on the way each batch leaves answers and losses.
    def keep(batch: PackedBatch, outputs: Any) -> None:
        index = batch.index.numpy()
        parts.update(zip(index.tolist(), task.predict(outputs, batch), strict=True))
        each = task.each_loss(outputs, batch)
        # Some tasks have only the loss of a whole batch.
        if each is None:
            with precision_context(target, precision):
                each = _one_by_one(bundle, features, batch)
        sums[index] = each.sums.cpu().double().numpy()
        terms[index] = each.counts.cpu().numpy()

    whole = evaluate_features(
        *(task, model, features),
        batch_tokens=batch_tokens,
        device=target,
        precision=precision,
        progress=None if progress is None else lambda done: progress(done, len(features)),
        watch=keep,
    )
    # Join the sequences of each example, and compare its answer with the truth.
    grade = task.grader(records)
    examples = []
    for record, group in _groups(task, features):
        answer = task.combine([parts[i] for i in group], records.rows[record])
        lengths = features.lengths[group]
        examples.append(
            Example(
                record=record,
                features=tuple(group),
                loss=float(sums[group].sum()),
                terms=int(terms[group].sum()),
                tokens=int(lengths.sum() if isinstance(task, ReadsWindows) else lengths.max()),
                grade=grade(answer, record),
            )
        )
    # By feature, the mean over its terms.
    losses = sums / np.maximum(terms, 1)
    return Examined(
        bundle, records, features, tuple(examples), losses, whole.metrics, whole.details
    )


def batch_of(task: Head, features: FeatureSet, which: int) -> PackedBatch:
    """Return a batch of one feature, as it is evaluated."""
    return drawn(task, features.batch(np.array([which])), seed=0, epoch=-1)


def _one_by_one(bundle: Bundle, features: FeatureSet, batch: PackedBatch) -> EachLoss:
    """Compute the losses of a batch feature by feature, for tasks that know only whole batches."""
    task = task_of(bundle)
    losses = []
    for index in batch.index.tolist():
        alone = batch_of(task, features, index).to(batch.tokens.device)
        loss = task.each_loss(task.forward(bundle.model, alone), alone)
        assert loss is not None  # noqa: S101 - `each_loss` knows the loss of a single feature
        losses.append(loss)
    return EachLoss(torch.cat([x.sums for x in losses]), torch.cat([x.counts for x in losses]))


def _groups(task: Preprocessor, features: FeatureSet) -> list[tuple[int, list[int]]]:
    """Return the record of each example with the numbers of its features."""
    records = features.records.tolist()
    if isinstance(task, ReadsStream):
        return [(record, [index]) for index, record in enumerate(records)]
    own: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        own.setdefault(record, []).append(index)
    return list(own.items())
