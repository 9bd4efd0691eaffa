"""Metrics that a recipe adds to the metrics of its task (`task.metrics`).

Packages provide them as entry points of the group `pretune.metrics`, and a person's own code by
`pretune.register("metric")`. A metric is a function of answers and truths, an object of
torchmetrics (see `own_metrics`), or a class like the `Metrics` of a task; its constructor takes the
task and the features, as `Task.metrics` does:

    class MeanLength:
        def __init__(self, task: AnyTask, features: Features | None) -> None: ...

The names of its figures can be given as `train.best`. Which of them are better when lower it states
as `lower_is_better = {"edit_distance": True}`; otherwise the name decides (see `lower_is_better`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pretune.data.batch import Features, PackedBatch
from pretune.errors import PretuneError, RecipeError
from pretune.registry import Registry
from pretune.tasks.base import AnyTask, Metrics
from pretune.tasks.own_metrics import own_metric

#: Metrics that installed packages provide, by name.
METRICS: Registry[Callable[[AnyTask, Features | None], Metrics]] = Registry(
    "pretune.metrics", "metric", {}
)


#: Figures that are better when lower and whose names do not tell.
LOWER = ("mse", "mae", "kl", "share_without_end")


def lower_is_better(figure: str) -> bool:
    """Whether a smaller value of a figure is better.

    A metric of an installed package may state it; otherwise losses, errors and perplexities are
    better when lower, by their names.
    """
    for name in METRICS:
        try:
            stated = getattr(METRICS[name], "lower_is_better", {})
        except PretuneError:  # cannot be imported: only a recipe that asks for it need know
            continue
        if isinstance(stated, Mapping) and figure in stated:
            return bool(stated[figure])
    return figure.endswith(("loss", "cross_entropy", "perplexity")) or figure in LOWER


@dataclass
class AllMetrics:
    """The metrics of a task together with those that its options add."""

    own: Metrics
    added: dict[str, Metrics]

    @classmethod
    def of(cls, task: AnyTask, features: Features | None = None) -> Self:
        """Begin an evaluation, as `Task.metrics` does.

        Raises:
            RecipeError: no installed package has a metric of that name.
        """
        # All names are looked up before any metric is made.
        kinds = {
            name: own_metric(name, METRICS.find(name, error=RecipeError))
            for name in task.options.metrics
        }
        added = {name: kind(task, features) for name, kind in kinds.items()}
        return cls(task.metrics(features), added)

    def update(self, outputs: Any, batch: PackedBatch) -> None:
        """Add one batch."""
        for metrics in (self.own, *self.added.values()):
            metrics.update(outputs, batch)

    def merge(self, other: Self) -> None:
        """Add what another process saw."""
        self.own.merge(other.own)
        for name, metrics in self.added.items():
            metrics.merge(other.added[name])

    def result(self) -> dict[str, float]:
        """Compute all figures; where two have the same name, the task's own counts."""
        figures: dict[str, float] = {}
        for metrics in (*self.added.values(), self.own):
            figures |= metrics.result()
        return figures

    def details(self) -> dict[str, Any]:
        """Return the task's details, and each added metric's under its name."""
        return {**{name: m.details() for name, m in self.added.items()}, **self.own.details()}
