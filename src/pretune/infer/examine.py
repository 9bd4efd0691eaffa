"""Every example of some data: its loss, the answer, and whether that is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretune.data import FeatureSet, PackedBatch, Records, batches_by_length
from pretune.infer.predict import the_task
from pretune.tasks import AnyTask, EachLoss, Grade, featurize
from pretune.tasks.bundle import Bundle
from pretune.training import choose_device, precision_context

Array = NDArray[Any]


@dataclass(frozen=True)
class Example:
    """One example with what became of it.

    Attributes:
        record: which record (0-based) it is, or a part of.
        features: the numbers of its sequences.
        text: what is shown of it: its columns, or the text of its sequence.
        loss: the sum over its terms, in nats.
        terms: how many these are.
        tokens: how long it is, in tokens.
        grade: the answer beside the truth.
        ranked: the possible answers with their probabilities, best first.
    """

    record: int
    features: tuple[int, ...]
    text: Mapping[str, str]
    loss: float
    terms: int
    tokens: int
    grade: Grade
    ranked: tuple[tuple[str, float], ...]

    @property
    def mean_loss(self) -> float:
        """The loss of a term; NaN where there is none."""
        return self.loss / self.terms if self.terms else float("nan")


@dataclass(frozen=True)
class Examined:
    """All examples of some data.

    Attributes:
        task: what was asked.
        records: where they come from.
        features: what the model read.
        examples: in the order of the data.
        metrics: as `evaluate` gives them.
        details: as `evaluate` gives them.
    """

    task: AnyTask
    records: Records
    features: FeatureSet
    examples: tuple[Example, ...]
    metrics: dict[str, float]
    details: dict[str, Any]

    @cached_property
    def sums(self) -> Array:
        """`[N, 2 + K]` float64, for `Task.figures`."""
        rows = [(e.loss, e.terms, *e.grade.counts) for e in self.examples]
        return np.array(rows, dtype=np.float64)

    def worst_first(self) -> list[int]:
        """The numbers of the examples, those with the highest loss of a term first."""
        losses = np.nan_to_num([-example.mean_loss for example in self.examples], nan=np.inf)
        return [int(i) for i in np.argsort(losses, kind="stable")]


def examine(
    bundle: Bundle,
    records: Records,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> Examined:
    """Ask a model about each of some labelled records.

    Args:
        bundle: with a task.
        records: with their targets.
        device: `auto`, `cpu`, `cuda`, ...
        precision: as in `precision_context`.
        batch_tokens: tokens at a time; changes memory and speed only.
        progress: called with the number of sequences done, and of all.

    Raises:
        PretuneError: the model has no task, or a record cannot be used.
    """
    task, target = the_task(bundle), choose_device(device)
    features = featurize(task, records, bundle.tokenizer, evaluation=True)
    model = bundle.model.to(target).eval()
    metrics = task.metrics(features)
    parts: dict[int, Any] = {}
    sums, terms = np.zeros(len(features)), np.zeros(len(features), dtype=np.int64)
    loss, count, read = 0.0, 0, features.tokens.copy()
    for which in batches_by_length(features.lengths, batch_tokens):
        batch = task.augment(features.batch(which), 0, -1).to(target)
        with torch.inference_mode(), precision_context(target, precision):
            outputs = task.forward(model, batch)
            whole = task.loss(outputs, batch)
            found = task.predict(outputs, batch)
            metrics.update(outputs, batch)
            each = task.each_loss(outputs, batch) or _one_by_one(bundle, features, batch)
        index = batch.index.numpy()
        parts.update(zip(index.tolist(), found, strict=True))
        sums[index] = each.sums.float().cpu().numpy()
        terms[index] = each.counts.cpu().numpy()
        loss, count = loss + float(whole.sum), count + whole.count
        _keep_tokens(read, features, batch)
        if progress is not None:
            progress(len(parts), len(features))
    shown = _Shown(bundle, records, features, parts, sums, terms, read)
    figures = {"loss": loss / max(count, 1), **metrics.result()}
    return Examined(task, records, features, shown.examples(), figures, metrics.details())


def batch_of(task: AnyTask, features: FeatureSet, which: int) -> PackedBatch:
    """One sequence, as it is evaluated."""
    return task.augment(features.batch(np.array([which])), 0, -1)


def _one_by_one(bundle: Bundle, features: FeatureSet, batch: PackedBatch) -> EachLoss:
    task = the_task(bundle)
    found = []
    for index in batch.index.tolist():
        alone = batch_of(task, features, index).to(batch.tokens.device)
        one = task.each_loss(task.forward(bundle.model, alone), alone)
        assert one is not None  # noqa: S101 - as `each_loss` promises
        found.append(one)
    return EachLoss(torch.cat([x.sums for x in found]), torch.cat([x.counts for x in found]))


def _keep_tokens(read: Array, features: FeatureSet, batch: PackedBatch) -> None:
    """Remember what the model really read: masks are drawn anew for each batch."""
    tokens = batch.tokens.cpu().numpy()
    for index, start, length in zip(
        batch.index.tolist(), batch.layout.starts, batch.layout.lengths, strict=True
    ):
        begin = int(features.starts[index])
        read[begin : begin + length] = tokens[start : start + length]


@dataclass(frozen=True)
class _Shown:
    bundle: Bundle
    records: Records
    features: FeatureSet
    parts: Mapping[int, Any]
    sums: Array
    terms: Array
    read: Array

    def examples(self) -> tuple[Example, ...]:
        task = the_task(self.bundle)
        if task.each_sequence:
            groups = [[i] for i in range(len(self.features))]
        else:
            own: dict[int, list[int]] = {}
            for index, record in enumerate(self.features.records.tolist()):
                own.setdefault(record, []).append(index)
            groups = list(own.values())
        return tuple(self._example(task, group) for group in groups)

    def _example(self, task: AnyTask, group: list[int]) -> Example:
        record = int(self.features.records[group[0]])
        row = self.records.rows[record]
        answer = task.combine([self.parts[i] for i in group], row)
        if task.each_sequence:
            begin, end = self.features.starts[group[0]], self.features.starts[group[0] + 1]
            ids = self.read[begin:end].tolist()
            text = {"text": self.bundle.tokenizer.decode(ids, skip_special=False)}
        else:
            text = {name: str(row[name]) for name in task.shown if name in row}
        grade = task.grade(answer, self.records, record)
        return Example(
            record=record,
            features=tuple(group),
            text=text,
            loss=float(self.sums[group].sum()),
            terms=int(self.terms[group].sum()),
            tokens=int(self.features.lengths[group].max()),
            grade=grade,
            ranked=tuple(answer.ranked()),
        )
