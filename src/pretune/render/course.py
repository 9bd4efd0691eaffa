"""The course of a training, as its run folder has it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: What comes first of the figures; then the others of validation, then those of training.
FIRST, LAST = ("loss",), ("learning_rate", "tokens_per_second", "gradient_norm")


@dataclass(frozen=True)
class Course:
    """Figures over the updates.

    Attributes:
        curves: updates and values, by `train` or `validation` and the name of the figure.
    """

    curves: dict[str, dict[str, tuple[list[float], list[float]]]]

    @property
    def names(self) -> list[str]:
        """Of all figures, in the order in which to show them."""
        known = dict.fromkeys(
            name for kind in ("validation", "train") for name in self.curves.get(kind, {})
        )
        others = [name for name in known if name not in FIRST + LAST]
        return [*(n for n in FIRST if n in known), *others, *(n for n in LAST if n in known)]

    @classmethod
    def read(cls, path: Path) -> Course:
        """From a run's `metrics.jsonl`; nothing where there is none.

        A line that cannot be read is passed over: the process may have died while it wrote it.
        """
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        return cls.of(text.splitlines())

    @classmethod
    def of(cls, lines: Iterable[str]) -> Course:
        """From such lines."""
        curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        for line in lines:
            try:
                entry = json.loads(line)
                step = float(entry.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            for key, value in entry.items():
                kind, slash, name = key.partition("/")
                if slash and kind in ("train", "validation") and isinstance(value, int | float):
                    steps, values = curves.setdefault(kind, {}).setdefault(name, ([], []))
                    steps.append(step)
                    values.append(float(value))
        return cls(dict(sorted(curves.items())))
