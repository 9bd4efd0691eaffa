"""What `pretune runs` and `pretune sweep` show in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.experiments.runs import RunInfo, RunsFound
from pretune.experiments.sweep import SweepResult
from pretune.recipe import yaml12

_STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "damaged": "red"}


def runs_table(found: RunsFound) -> RenderableType:
    """A line for each run, and below what could not be read."""
    if not found.runs and not found.problems:
        return Text(f"no runs in {found.folder}")
    table = Table(pad_edge=False)
    for name in ("run", "state", "task", "model", "data", "best"):
        table.add_column(name, overflow="fold")
    for name in ("step", "seconds", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    problems = [f"! {text}" for text in found.problems]
    for run in found.runs:
        seconds = "" if run.seconds is None else f"{run.seconds:,.1f}"
        mark = " !" if run.problems else ""
        table.add_row(
            Text(run.folder + mark),
            Text(run.state, _STYLES[run.state]),
            *(Text(text or "") for text in (run.task, run.model, run.data, _best(run))),
            f"{run.step:,}",
            seconds,
            short_time(run.age),
        )
        problems += [f"! {run.folder}: {text}" for text in run.problems]
    return Group(table, *(Text(text, "red") for text in problems))


def _best(run: RunInfo) -> str:
    if run.best is not None:
        return f"{run.picked_by} {run.best:.4f}"
    return "  ".join(f"{name} {value:.4f}" for name, value in run.metrics.items())


def short_time(seconds: float) -> str:
    """`41 s`, `5 min`, `3.2 h`, `12 d`."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds:.0f} s"


def sweep_table(result: SweepResult) -> RenderableType:
    """The trials, the best one first."""
    keys = list(result.trials[0].values) if result.trials else []
    table = Table(pad_edge=False)
    for name in ("trial", result.metric, *keys, "seconds"):
        table.add_column(name, justify="right")
    for trial in result.trials:
        value = trial.state if trial.metric is None else f"{trial.metric:.4f}"
        shown = [_value(trial.values[key]) for key in keys]
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        style = None if trial.metric is not None else "dim"
        table.add_row(str(trial.number), value, *shown, seconds, style=style)
    title = f"{result.done} trials in {result.output}; {result.metric} is to be {result.direction}d"
    failed = [
        Text(f"trial {trial.number} failed: {trial.error}", "dim")
        for trial in result.trials
        if trial.error
    ]
    return Group(Text(title, "bold"), table, *failed)


def _value(value: object) -> Text:
    return Text(f"{value:.3g}" if isinstance(value, float) else yaml12.inline(value))
