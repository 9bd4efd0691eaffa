"""The gate: does a smaller form of a model still answer as the model does?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from pretune.bundle.bundle import Bundle
from pretune.errors import DataError
from pretune.export.quality_gate import GateLimits, points_lost
from pretune.inference.predict import Predictor, column_names, task_of
from pretune.tasks.features import read_for
from pretune.training.data import read_features
from pretune.training.logging import Reporter
from pretune.training.validation import evaluate_features


@dataclass(frozen=True)
class Gate:
    """How a smaller form of a model does on labelled data.

    Attributes:
        metric: the task's own, e.g. `accuracy`.
        before: its value for the model itself.
        after: its value for the smaller form.
        lost: points of the metric that are lost; below 0: won.
        agreement: percent of the examples with the same answer, apart from probabilities.
        examples: their number.
        limits: what may be lost.
    """

    metric: str
    before: float
    after: float
    lost: float
    agreement: float
    examples: int
    limits: GateLimits

    @property
    def passed(self) -> bool:
        """Whether the smaller form is good enough."""
        return self.lost <= self.limits.max_loss and self.agreement >= self.limits.min_agreement

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.before:.4f} -> {self.after:.4f} ({-self.lost:+.2f} points), "
            f"{self.agreement:.2f} % of {self.examples:,} answers are equal"
        )


def measure_gate(
    bundle: Bundle,
    smaller: nn.Module,
    data: str,
    limits: GateLimits,
    *,
    columns: Mapping[str, str] | None = None,
) -> Gate:
    """Let a model and a smaller form of it answer the same labelled data.

    Args:
        bundle: the model.
        smaller: runs on packed batches as the model does.
        data: a labelled file, or a Hub dataset.
        limits: what may be lost.
        columns: the task's names of columns -> the data's.

    Raises:
        DataError: the data cannot be read, or have nothing to measure on.
    """
    task = task_of(bundle)
    records = read_for(task, data, columns=column_names(bundle, columns))
    quiet = Reporter(quiet=True)
    features = read_features("data", task, records, bundle, quiet, evaluation=True)
    if len(features) == 0:
        raise DataError(f"{records.origin}: nothing to measure on", "Name other data: --data.")
    forms = (bundle.model, smaller.eval())
    before, after = (
        evaluate_features(task, form, features).metrics[task.best_by] for form in forms
    )
    answers = [Predictor(replace(bundle, model=form)).predict(records) for form in forms]
    pairs = zip(*answers, strict=True)
    equal = sum(
        _apart_from_numbers(a.to_dict()) == _apart_from_numbers(b.to_dict()) for a, b in pairs
    )
    lost = points_lost(task.name, task.best_by, before, after)
    agreement = 100 * equal / len(records)
    return Gate(task.best_by, before, after, lost, agreement, len(records), limits)


def _apart_from_numbers(answer: Any) -> Any:
    """What of an answer does not come from rounding: no probabilities, and only the best."""
    if isinstance(answer, Mapping):
        kept = {name: value for name, value in answer.items() if name != "candidates"}
        return {name: _apart_from_numbers(value) for name, value in kept.items()}
    if isinstance(answer, list | tuple):
        return [_apart_from_numbers(value) for value in answer]
    return None if isinstance(answer, float) else answer
