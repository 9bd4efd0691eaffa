"""List the runs below a folder by the files in their folders.

A run may be unfinished, cut off by a crash or damaged by hand: it is listed all the same, with a
note on what could not be read.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pretune.errors import PretuneError, RunError, did_you_mean
from pretune.recipe import yaml12
from pretune.tasks.added_metrics import lower_is_better
from pretune.tasks.builtin import TASKS
from pretune.tasks.classification.counts import POSITIVE
from pretune.training.run_folder import CHECKPOINTS, EVENTS, METRICS, RECIPE, RESULT

State = Literal["finished", "running", "stopped", "damaged"]
#: A run counts as stopped if it wrote nothing for this many of its usual pauses between two log
#: entries, and for this many seconds.
PAUSES, SECONDS = 10, 60.0
_VALIDATION = "validation/"


@dataclass
class RunInfo:
    """What the folder of a run tells."""

    folder: str
    # Running: it wrote something lately; damaged: its recipe or its result cannot be read.
    state: State = "stopped"
    task: str | None = None
    model: str | None = None
    data: str | None = None
    seed: int | None = None
    picked_by: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    positive: str | None = None  # the class that F1 is of, where there are two; None: unknown
    best_step: int | None = None
    step: int = 0
    epoch: float | None = None  # passes over the data; None if not known
    seconds: float | None = None  # None before the run is finished
    written: float = 0.0  # last change, in seconds since 1970
    age: float = 0.0
    problems: list[str] = field(default_factory=list)  # what could not be read, a sentence each

    @property
    def best(self) -> float | None:
        """The best value so far of the metric that picks the best model."""
        return self.metrics.get(self.picked_by or "")


@dataclass(frozen=True)
class RunsFound:
    """All runs below a folder."""

    folder: str
    runs: tuple[RunInfo, ...]
    problems: tuple[str, ...]  # folders that could not be read, a sentence each

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)


def find_runs(folder: Path, sort: str = "time", now: float | None = None) -> RunsFound:
    """Read all runs below a folder, which may be a run itself.

    Args:
        folder: the folder to search.
        sort: `time` (newest first), `metric` (best first), or the name of a metric.
        now: the time in seconds since 1970; default: the clock.

    Raises:
        RunError: there is no such folder, or no run has such a metric.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder", "Name the folder that your runs are in.")
    now = time.time() if now is None else now
    problems: list[str] = []
    runs = [_read_run(path, now) for path in _run_folders(folder, problems.append)]
    return RunsFound(str(folder), tuple(_sorted(runs, sort)), tuple(problems))


def _run_folders(folder: Path, complain: Callable[[str], None]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        complain(f"{error.filename}: cannot be read ({error.strerror})")

    for place, inner, files in os.walk(folder, onerror=unreadable):
        # No runs lie in what a run writes; links are not followed, as their targets are seen.
        inner[:] = sorted(
            n for n in inner if not n.startswith(".") and n not in (CHECKPOINTS, EVENTS)
        )
        # A published model has its recipe beside its config.json, and is no run.
        if "config.json" in files:
            continue
        if {RECIPE, RESULT, METRICS} & set(files) or (Path(place) / CHECKPOINTS).is_dir():
            yield Path(place)


def _read_run(folder: Path, now: float) -> RunInfo:
    run = RunInfo(str(folder))
    # The age of a run is that of its youngest file.
    changed = {}
    for name in (RECIPE, METRICS, RESULT, CHECKPOINTS):
        try:
            changed[name] = (folder / name).stat().st_mtime
        except OSError:
            continue
    run.written = max(changed.values(), default=0.0)
    run.age = max(0.0, now - run.written)
    _read_recipe(run, folder / RECIPE)
    lines = _read_metrics(run, folder / METRICS) if METRICS in changed else 0
    if RESULT in changed:
        _read_result(run, folder / RESULT)
    elif run.state != "damaged":
        # Without a result, a run is running if it is no older than a few of its usual pauses.
        pause = (run.written - changed.get(RECIPE, run.written)) / max(lines, 1)
        run.state = "running" if run.age <= max(SECONDS, PAUSES * pause) else "stopped"
    return run


def _read_recipe(run: RunInfo, path: Path) -> None:
    """Read a recipe by its plain values, so that a recipe of another version can be listed too."""
    try:
        values = yaml12.parse(path.read_text(encoding="utf-8"), RECIPE)
        run.task = str(values["task"]["name"])
        run.model, run.data = str(values["model"]["from"]), str(values["data"]["train"])
        run.seed = int(values.get("seed", 0))
        chosen = values.get("train", {}).get("best")
        run.picked_by = chosen or (TASKS[run.task].best_by if run.task in TASKS else "loss")
    except (OSError, PretuneError, ValueError, KeyError, TypeError, AttributeError) as error:
        run.state = "damaged"
        run.problems.append(f"{RECIPE}: {_reason(error)}")


def _read_metrics(run: RunInfo, path: Path) -> int:
    """Read the progress of a run and its best evaluation; return the number of log entries."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError as error:
        run.problems.append(f"{METRICS}: {_reason(error)}")
        return 0
    count = 0
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            step, epoch = int(entry["step"]), float(entry["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            # The last line may be cut off: the process died, or is writing it just now.
            if line.endswith("\n"):
                run.problems.append(f"{METRICS}, line {number}: {_reason(error)}")
            continue
        count += 1
        if step >= run.step:
            run.step, run.epoch = step, epoch
        _note_evaluation(run, step, entry)
    return count


def _note_evaluation(run: RunInfo, step: int, entry: dict[str, Any]) -> None:
    """Keep the metrics of an evaluation if it is the best so far."""
    metrics = {
        name.removeprefix(_VALIDATION): float(value)
        for name, value in entry.items()
        if name.startswith(_VALIDATION) and isinstance(value, int | float)
    }
    value = metrics.get(run.picked_by or "")
    if value is None:
        return
    if run.best is None or _rank(run.picked_by, value) < _rank(run.picked_by, run.best):
        run.metrics, run.best_step = metrics, step


def _read_result(run: RunInfo, path: Path) -> None:
    try:
        # JSON has no NaN: a metric that is not finite is written as null.
        result = json.loads(path.read_text(encoding="utf-8"))
        run.metrics = {
            str(name): math.nan if value is None else float(value)
            for name, value in result["metrics"].items()
        }
        run.best_step, run.step = result["best_step"], int(result["steps"])
        run.seconds = float(result["seconds"])
        run.positive = (result.get("details") or {}).get(POSITIVE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        run.state = "damaged"
        run.problems.append(f"{RESULT}: {_reason(error)}")
        return
    if run.state != "damaged":
        run.state = "finished"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return "is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
    if isinstance(error, PretuneError):
        return error.message
    if isinstance(error, KeyError):
        return f"has no {error}"
    return f"not readable ({error})"


def _sorted(runs: list[RunInfo], sort: str) -> list[RunInfo]:
    if sort == "time":
        return sorted(runs, key=lambda run: -run.written)
    if sort == "metric":
        # Runs with the same metric stand together.
        return sorted(runs, key=lambda r: (r.picked_by or "~", _rank(r.picked_by, r.best)))
    known = {name for run in runs for name in run.metrics}
    if runs and sort not in known:
        raise RunError(
            f"--sort {sort}: no run has such a metric",
            did_you_mean(sort, ["time", "metric", *sorted(known)]),
        )
    return sorted(runs, key=lambda run: _rank(sort, run.metrics.get(sort)))


def _rank(metric: str | None, value: float | None) -> float:
    """Turn the value of a metric into a sort key: best first, unknown values last."""
    if value is None or math.isnan(value):
        return math.inf
    return value if lower_is_better(metric or "") else -value
