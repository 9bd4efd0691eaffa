"""The history of a training: the metrics that its run folder recorded, update by update."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: What is shown first, and last: how the training went. In between stand the other metrics of the
#: validation data.
FIRST, LAST = ("loss",), ("learning_rate", "tokens_per_second", "gradient_norm")

#: Metrics that are read beside each other, such as two log-probabilities that may both fall.
TOGETHER = (
    ("chosen_log_prob", "rejected_log_prob"),
    ("chosen_reward", "rejected_reward"),
    ("kl", "kl_k2", "kl_k3"),
)

#: Updates, and the values of a metric at them.
Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class MetricHistory:
    """The values of all metrics over the updates, by `train` or `validation` and by metric."""

    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All metrics, in the order to show them."""
        known = dict.fromkeys(
            name for kind in ("validation", "train") for name in self.curves.get(kind, {})
        )
        others = [name for name in known if name not in FIRST + LAST]
        return [*(n for n in FIRST if n in known), *others, *(n for n in LAST if n in known)]

    @property
    def panels(self) -> list[tuple[str, ...]]:
        """All metrics in the order to show them, each with those that belong beside it."""
        known = self.names
        groups = {name: group for group in TOGETHER for name in group}
        return list(
            dict.fromkeys(
                tuple(other for other in groups.get(name, (name,)) if other in known)
                for name in known
            )
        )

    def frontier(self, metric: str, against: str = "kl") -> list[tuple[float, float, float]]:
        """Pair two metrics of the evaluations.

        Args:
            metric: a metric of the validation data.
            against: another one.

        Returns:
            the updates, `against` and `metric` of each evaluation in which both are finite.
        """
        evaluated = self.curves.get("validation", {})
        if metric not in evaluated or against not in evaluated:
            return []
        other = dict(zip(*evaluated[against], strict=True))
        return [
            (step, other[step], value)
            for step, value in zip(*evaluated[metric], strict=True)
            if step in other and math.isfinite(value) and math.isfinite(other[step])
        ]

    @classmethod
    def read(cls, path: Path) -> MetricHistory:
        """Read a run's `metrics.jsonl`; the history is empty if there is no such file."""
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        return cls.of(text.splitlines())

    @classmethod
    def of(cls, lines: Iterable[str]) -> MetricHistory:
        """Parse lines of `metrics.jsonl`, skipping those that a dying process left unfinished."""
        curves: dict[str, dict[str, Curve]] = {}
        for line in lines:
            try:
                entry = json.loads(line)
                step = float(entry.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            # Keys such as "train/loss"; others, such as "epoch", are no metrics.
            for key, value in entry.items():
                kind, slash, name = key.partition("/")
                if slash and kind in ("train", "validation") and isinstance(value, int | float):
                    steps, values = curves.setdefault(kind, {}).setdefault(name, ([], []))
                    steps.append(step)
                    values.append(float(value))
        return cls(dict(sorted(curves.items())))
