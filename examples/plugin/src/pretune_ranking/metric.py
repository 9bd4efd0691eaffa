"""The metric `score_margin`: how far apart the scores of a pair are."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor

from pretune.data.batch import Features, PackedBatch
from pretune.tasks.base import AnyTask
from pretune_ranking.task import margins


class ScoreMargin:
    """The mean of s_better - s_worse; a recipe asks for it by `task.metrics: [score_margin]`."""

    #: Which of its figures are better when lower; without this, their names would decide.
    lower_is_better: ClassVar[dict[str, bool]] = {"score_margin": False}

    def __init__(self, task: AnyTask, features: Features | None) -> None:
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Add one batch."""
        margin = margins(outputs, batch)
        self._sum += float(margin.double().sum())
        self._count += len(margin)

    def merge(self, other: Self) -> None:
        """Add what another process saw."""
        self._sum += other._sum
        self._count += other._count

    def result(self) -> dict[str, float]:
        """Compute the figure."""
        return {"score_margin": self._sum / max(self._count, 1)}

    def details(self) -> dict[str, Any]:
        """Return nothing more than the figure."""
        return {}
