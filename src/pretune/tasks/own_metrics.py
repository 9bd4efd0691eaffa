"""Metrics of a person's own: a function of answers and truths, or an object of torchmetrics.

    @pretune.register("metric", lower_is_better=True)
    def cost(answers, truths):
        return sum(5 if t == "spam" else 1 for a, t in zip(answers, truths) if a != t)

    pretune.register("metric", "auroc")(torchmetrics.AUROC(task="binary"))

A recipe asks for them by `task.metrics: [cost, auroc]`; `own_metric` makes of each what
`METRICS` holds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pretune.data.batch import Features, PackedBatch
from pretune.data.records import Records
from pretune.errors import OwnCodeError, describe_value
from pretune.tasks.base import AnyTask
from pretune.tasks.grading import TellsTruths
from pretune.text.foreign_errors import described_error

#: A figure of all answers and all truths, which have the same order.
MetricFunction = Callable[[list[Any], list[Any]], Any]


class FunctionMetric:
    """Collects answers and truths, and computes one figure of all of them.

    Args:
        name: of the metric and of its figure.
        function: takes the answers and the truths.
        task: that is evaluated.
        features: whose records tell the truth of tasks that do not `TellsTruths`; None where only
            the names of figures are wanted.
    """

    def __init__(
        self, name: str, function: MetricFunction, task: AnyTask, features: Features | None
    ) -> None:
        self._name, self._function, self._task = name, function, task
        self._features = features
        # By the number of each feature: its answer and its truth, or a part of its answer.
        self._items: dict[int, Any] = {}

    def update(self, outputs: Any, batch: PackedBatch) -> None:
        """Add one batch."""
        task = self._task
        items: Sequence[Any]
        if isinstance(task, TellsTruths):
            items = [*zip(*task.answers_and_truths(outputs, batch), strict=True)]
        else:
            items = task.predict(outputs, batch)
        self._items.update(zip(batch.index.tolist(), items, strict=True))

    def merge(self, other: Self) -> None:
        """Add what another process saw."""
        self._items |= other._items

    def result(self) -> dict[str, float]:
        """Compute the figure; NaN where there is nothing to compare.

        Raises:
            OwnCodeError: the function failed, or gave no number.
        """
        # Records without a label, as a teacher's may be, do not count.
        pairs = [(answer, truth) for answer, truth in self._pairs() if truth is not None]
        if not pairs:
            return {self._name: math.nan}
        answers, truths = ([*values] for values in zip(*pairs, strict=True))
        try:
            value = self._function(answers, truths)
        except (Exception, SystemExit) as error:
            raise OwnCodeError(
                f"the metric {self._name} failed: {described_error(error)}",
                "It gets two lists of the same length: the answers and the truths.",
            ) from error
        return {self._name: _figure(value, self._name)}

    def details(self) -> dict[str, Any]:
        """Return nothing more than the figure."""
        return {}

    def _pairs(self) -> list[tuple[Any, Any]]:
        """Return each answer with its truth, in the order of the data."""
        if isinstance(self._task, TellsTruths):
            return [self._items[number] for number in sorted(self._items)]
        features = self._features
        rows = getattr(features, "rows", None)
        if features is None or rows is None:
            return []
        # The parts of a record's answer are joined, and compared as in a report.
        parts: dict[int, list[Any]] = {}
        for number in sorted(self._items):
            parts.setdefault(features.record(number), []).append(self._items[number])
        grade = self._task.grader(Records(rows, "data", columns=tuple(rows[0])))
        pairs = []
        for record, own in parts.items():
            compared = grade(self._task.combine(own, rows[record]), record)
            pairs.append((compared.answer, compared.truth))
        return pairs


class TorchMetric:
    """An object of torchmetrics, or anything that has its `update`, `compute` and `reset`.

    Scores and targets are collected on the host and given to it at the end, in the order of the
    data: the figure does not depend on batches and processes.

    Args:
        name: of the metric.
        metric: the object, which is copied and stays as it is.
        task: that is evaluated.
        features: not used.

    Raises:
        OwnCodeError: the task has no scores for it.
    """

    def __init__(self, name: str, metric: Any, task: AnyTask, features: Features | None) -> None:
        if not isinstance(task, TellsTruths):
            raise OwnCodeError(
                f"the metric {name} is an object of torchmetrics, and {task.name} has no scores "
                "for it",
                "Register a function of answers and truths.",
            )
        self._name, self._metric, self._task = name, metric, task
        self._items: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, outputs: Any, batch: PackedBatch) -> None:
        """Add one batch."""
        assert isinstance(self._task, TellsTruths)  # noqa: S101 - checked above
        scores, targets = self._task.scores_and_targets(outputs, batch)
        both = zip(scores.detach().cpu(), targets.cpu(), strict=True)
        self._items.update(zip(batch.index.tolist(), both, strict=True))

    def merge(self, other: Self) -> None:
        """Add what another process saw."""
        self._items |= other._items

    def result(self) -> dict[str, float]:
        """Compute the figure, or those of a collection; NaN where there is nothing to compare.

        Raises:
            OwnCodeError: the object failed, or gave something else than numbers.
        """
        keys = getattr(self._metric, "keys", None)  # of a collection
        names = [*map(str, keys())] if callable(keys) else [self._name]
        if not self._items:
            return dict.fromkeys(names, math.nan)
        scores, targets = (
            torch.stack([self._items[number][side] for number in sorted(self._items)])
            for side in (0, 1)
        )
        try:
            metric = copy.deepcopy(self._metric)
            metric.reset()
            # Metrics of two classes take the probability of the second.
            if type(metric).__name__.startswith("Binary") and scores.shape[1:] == (2,):
                scores = scores[:, 1]
            metric.update(scores, targets)
            value = metric.compute()
        except Exception as error:
            raise OwnCodeError(
                f"the metric {self._name} failed: {described_error(error)}",
                f"It was given scores {[*scores.shape]} and targets {[*targets.shape]}; were "
                "the number of classes and the task of the object chosen for them?",
            ) from error
        if isinstance(value, Mapping):
            return {str(name): _figure(own, str(name)) for name, own in value.items()}
        return {self._name: _figure(value, self._name)}

    def details(self) -> dict[str, Any]:
        """Return nothing more than the figure."""
        return {}


def own_metric(name: str, thing: Any, *, lower_is_better: bool | None = None) -> Any:
    """Make of a function or an object what `METRICS` holds: something that makes a `Metrics`.

    A class is such a thing already.

    Args:
        name: of the metric.
        thing: a function of answers and truths, an object of torchmetrics, or a class.
        lower_is_better: what is said of its figure; None: the name decides.

    Raises:
        OwnCodeError: it is none of these.
    """
    if isinstance(thing, type | _Made):
        return thing
    if all(callable(getattr(thing, part, None)) for part in ("update", "compute", "reset")):
        kind: Callable[..., Any] = TorchMetric
    elif callable(thing):
        kind = FunctionMetric
    else:
        raise OwnCodeError(
            f"the metric {name}: expected a function, an object of torchmetrics or a class, found "
            f"{describe_value(thing)}",
            "Register a function that takes the answers and the truths.",
        )
    return _Made(name, thing, kind, lower_is_better)


class _Made:
    """Makes a metric of a function or an object for each evaluation."""

    def __init__(self, name: str, thing: Any, kind: Callable[..., Any], lower: bool | None) -> None:
        self._name, self._thing, self._kind = name, thing, kind
        #: As a class of an installed package states it.
        self.lower_is_better = {} if lower is None else {name: lower}

    def __call__(self, task: AnyTask, features: Features | None) -> Any:
        return self._kind(self._name, self._thing, task, features)


def _figure(value: Any, name: str) -> float:
    """Return a figure as a float.

    Raises:
        OwnCodeError: it is no single number.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise OwnCodeError(
            f"the metric {name} gave {describe_value(value)}, not a number",
            "It has to give one number for all answers together.",
        ) from None
