"""The progress of a run in a notebook: one display that is updated in place, with a live curve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from pretune.text.notebook import Displayed, LiveDisplay

#: A curve keeps at most so many points: of more, every second one goes.
MAX_POINTS = 400
#: The least seconds between two updates of the display.
PAUSE = 0.5


@dataclass
class LiveRun(Displayed):
    """What is known of a run while it goes on.

    Attributes:
        what: what is being done: `training`, `reading train`, ...
        done: how much of it.
        total: of how much; 0: not known.
        started: when it began (`time.monotonic`).
        first: how much was done when it began.
        figures: the last entry of the log, in a line.
        curves: points (update, loss) by `training` and `validation`.
        metrics: of the last evaluation.
        notes: what people are told, a line each.
        state: `running`, `done` or `stopped`.
    """

    what: str = ""
    done: int = 0
    total: int = 0
    started: float = field(default_factory=time.monotonic)
    first: int = 0
    figures: str = ""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    state: str = "running"

    @override
    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        points = ((k, *point) for k, own in self.curves.items() for point in own)
        return [{"data": kind, "step": step, "loss": loss} for kind, step, loss in points]

    def __repr__(self) -> str:
        place = f" {self.done:,} of {self.total:,}" if self.total else ""
        figures = f", {self.figures}" if self.figures else ""
        return f"<{self.what or 'run'}{place}{figures}>"

    def add_point(self, kind: str, step: float, loss: float) -> None:
        """Continue a curve."""
        points = self.curves.setdefault(kind, [])
        points.append((step, loss))
        if len(points) > MAX_POINTS:
            del points[1:-1:2]


class LivePage:
    """Keeps the display of a run up to date, at most every `PAUSE` seconds."""

    def __init__(self) -> None:
        self.run = LiveRun()
        self._display = LiveDisplay(self.run)
        self._shown = float("-inf")

    def say(self, text: str) -> None:
        """Add a line of text."""
        self.run.notes.append(text)
        self._refresh()

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Start another work."""
        run = self.run
        run.what, run.total, run.done, run.first = what, total, done, done
        run.started, run.figures = time.monotonic(), ""
        self._refresh()

    def progress(self, done: int) -> None:
        """Tell how much is done."""
        self.run.done = done
        self._refresh()

    def step(self, step: int, loss: float, figures: str) -> None:
        """Take in an entry of the log."""
        self.run.add_point("training", step, loss)
        self.run.figures = figures
        self.progress(step)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in the figures of an evaluation."""
        self.run.metrics = dict(metrics)
        if "loss" in metrics:
            self.run.add_point("validation", step, metrics["loss"])
        self._refresh()

    def close(self, *, failed: bool) -> None:
        """Show how it ended."""
        self.run.state = "stopped" if failed else "done"
        self._refresh(at_once=True)

    def work(self, what: str, total: int) -> Callable[[int], None]:
        """Start a work beside the training; returns what takes the number of items done."""
        self.begin(what, total)
        return self.progress

    def _refresh(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._shown >= PAUSE:
            self._shown = now
            self._display.refresh()
