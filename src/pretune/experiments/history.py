"""The history of a training: the metrics that its run folder recorded, update by update."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: Metrics shown first, and last; in between stand the other metrics of the validation data.
FIRST, LAST = ("loss",), ("learning_rate", "tokens_per_second", "gradient_norm")

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
