"""Experiments in the terminal: runs, sweeps, plans, ladders, and what a prepared corpus holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pretune.corpus.pipeline import Prepared
from pretune.data.readers.plain_text import TEXT_UNITS
from pretune.experiments.ladder import Ladder
from pretune.experiments.plan import RunPlan
from pretune.experiments.runs import RunInfo, RunsFound
from pretune.experiments.sweep import SweepResult
from pretune.recipe import yaml12
from pretune.render.cluster_view import cluster_view, short_time
from pretune.render.escaping import one_line
from pretune.render.grid import Grid, Styled, titled
from pretune.tasks.classification.counts import POSITIVE, shown_figure
from pretune.text.spoken_language import tr
from pretune.text.terminal import in_line

_STATE_STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "damaged": "red"}
#: What each step of cleaning does to a document.
_CHANGES = {
    "bad_lines": "  without lines that are not valid in the encoding",
    "nfc": "  brought to NFC",
    "control": "  freed of control characters",
    "spaces": "  with spaces collapsed",
    "join_lines": "  with lines joined",
    "repeated_lines": "  with repeated lines dropped",
}


def runs_view(runs: RunsFound) -> RenderableType:
    """Lay out a line for each run; below, what could not be read."""
    if not runs.runs and not runs.problems:
        return Text(in_line(tr(f"no runs in {runs.folder}")))
    # A run with problems is marked in the table; the problems follow below it.
    problems, rows = [*map(tr, runs.problems)], []
    for run in runs.runs:
        rows.append(
            (
                run.folder + (" !" if run.problems else ""),
                Styled(tr(run.state), _STATE_STYLES[run.state]),
                *(text or "" for text in (run.task, run.model, run.data, _best(run))),
                f"{run.step:,}",
                "" if run.seconds is None else f"{run.seconds:,.1f}",
                short_time(run.age),
            )
        )
        problems += [f"{run.folder}: {tr(text)}" for text in run.problems]
    lines = [Text(in_line(f"! {text}"), "red") for text in problems]
    return Group(_RunRows(rows), *lines)


class _RunRows:
    """A table of runs, or where the terminal is too narrow for it, a paragraph for each.

    The name of a run is never broken over lines: people copy it.
    """

    header = ("run", "state", "task", "model", "data", "best", "step", "seconds", "age")
    #: Columns that are not broken, and to how much the others may shrink.
    unbroken, least = (0, 1, 2, 6, 7, 8), 12

    def __init__(self, rows: Sequence[Sequence[object]]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header = [tr(name) for name in self.header]
        needed = 1
        for column, cells in enumerate(zip(header, *self._rows, strict=True)):
            title, *widths = [cell_len(in_line(cell)) for cell in cells]
            longest = max(widths)
            if column not in self.unbroken:
                longest = min(longest, self.least)
            needed += max(title, longest) + 3  # with a border and two blanks
        if needed <= options.max_width:
            yield Grid(header, self._rows, numbers=(6, 7, 8), whole=(0, 1, 2)).terminal()
            return
        for name, state, *facts in self._rows:
            yield Text(in_line(name), "bold", no_wrap=True, overflow="ignore")
            told = [
                f"{title} {in_line(fact)}"
                for title, fact in zip(header[2:], facts, strict=True)
                if fact
            ]
            style = state.style if isinstance(state, Styled) else ""
            first = Text(in_line(state), style)
            yield Padding(Text(", ").join([first, *map(Text, told)]), (0, 0, 0, 2))


def _best(run: RunInfo) -> str:
    details = {POSITIVE: run.positive}
    if run.best is not None:
        return f"{shown_figure(run.picked_by or '', details)} {run.best:.4f}"
    return "  ".join(f"{shown_figure(n, details)} {value:.4f}" for n, value in run.metrics.items())


def sweep_view(result: SweepResult) -> RenderableType:
    """Lay out the trials of a sweep, best first; below, why others failed."""
    # All trials of a sweep try the same keys.
    keys = list(result.trials[0].values) if result.trials else []
    rows = []
    for trial in result.trials:
        value = trial.state if trial.metric is None else f"{trial.metric:.4f}"
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        cells = (trial.number, value, *(_value(trial.values[key]) for key in keys), seconds)
        rows.append([Styled(cell, "dim" if trial.metric is None else "") for cell in cells])
    header = (tr("trial"), result.metric, *keys, tr("seconds"))
    title = tr(
        f"{result.done} trials in {result.output}; {result.metric} is to be {result.direction}d"
    )
    failed = [
        Text(in_line(tr(f"trial {trial.number} failed: {trial.error}")), "dim")
        for trial in result.trials
        if trial.error
    ]
    grid = Grid(header, rows, title, numbers=range(len(header)))
    return Group(grid.terminal(), *failed)


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else yaml12.inline(value)


def plan_view(plan: RunPlan) -> RenderableType:
    """Lay out what a run will take."""
    examples, trained = f"{plan.examples:,}", f"{plan.trained:,}"
    if plan.truncated:
        examples = tr(f"{examples} ({plan.truncated:,} of them cut)")
    if plan.trained != plan.parameters:
        trained = tr(f"{trained} of {plan.parameters:,}")
    rows = {
        tr("training examples"): examples,
        tr("validation examples"): f"{plan.validation_examples:,}",
        tr("tokens an epoch"): f"{plan.tokens_per_epoch:,}",
        tr("epochs"): f"{plan.epochs:g}",
        tr("updates"): f"{plan.updates:,}",
        tr("evaluations"): f"{plan.evaluations:,}",
        tr("tokens in all"): f"{plan.tokens:,}",
        tr("parameters trained"): trained,
        tr("FLOPs a token"): f"{plan.flops_per_token:.3g}",
        tr("FLOPs in all"): f"{plan.flops:.3g}",
        tr("memory of the process (float32, CPU)"): f"{plan.process_bytes / 2**20:,.0f} MiB",
        **_of_teacher(plan),
        tr("a checkpoint's weights"): f"{plan.checkpoint_bytes / 2**20:,.0f} MiB",
    }
    facts = Grid(("", ""), list(rows.items())).terminal()
    if plan.cluster is not None:
        return Group(facts, cluster_view(plan.cluster))
    return Group(facts, *_times(plan))


def _of_teacher(plan: RunPlan) -> dict[str, str]:
    """The row on a teacher's memory, if it adds any."""
    if not plan.teacher_bytes:
        return {}
    return {tr("... of it for the teacher"): f"{plan.teacher_bytes / 2**20:,.0f} MiB"}


def _times(plan: RunPlan) -> list[Text]:
    speed = plan.speed
    if speed is None or plan.training_seconds is None or plan.hours is None:
        return [Text(tr("no time was measured"))]
    line = tr(
        f"about {short_time(3600 * plan.hours)} on this machine ({speed.device}): "
        f"{short_time(plan.training_seconds)} training, "
        f"{short_time(plan.evaluation_seconds or 0)} evaluation, "
        f"{short_time(plan.reading_seconds)} reading data and model"
    )
    if plan.teacher_seconds is not None:
        line += tr(f", {short_time(plan.teacher_seconds)} teacher")
    how = tr(
        f"by {speed.updates} real updates on a copy of the model: "
        f"{speed.training_tokens_per_second:,.0f} tokens/s, "
        f"{speed.flops_per_second / 1e9:,.1f} GFLOP/s"
    )
    return [Text(line, "bold"), Text(how, "dim")]


def ladder_view(ladder: Ladder) -> RenderableType:
    """Lay out the rungs of a ladder, oldest model first and the best in green, and samples."""
    best = min(rung.bits_per_character for rung in ladder.rungs)
    rows = []
    for rung in ladder.rungs:
        bits = rung.bits_per_character
        shown = Styled(f"{bits:.3f}", "green" if bits == best else "")
        perplexity = f"{rung.perplexity:,.2f}"
        rows.append((rung.title, f"{rung.parameters:,}", f"{rung.seconds:,.1f}", shown, perplexity))
    title = tr(
        f"{ladder.corpus}: {ladder.characters:,} characters to learn from, {ladder.held_back:,} "
        f"held back; tokens: {ladder.level} ({ladder.vocabulary:,}); {ladder.budget} each"
    )
    names = (tr("training, s"), tr("bits/character"), tr("perplexity/token"))
    header = (tr("model"), tr("parameters"), *names)
    # Below, each model continues the same text.
    samples = Table.grid(padding=(0, 2))
    for rung in ladder.rungs:
        samples.add_row(Text(rung.name, "dim"), Text(with_line_ends(rung.sample)))
    heading = tr(f"How they continue {with_line_ends(ladder.prompt)!r}:")
    return Group(Grid(header, rows, title).terminal(), titled(heading, samples))


def with_line_ends(text: str) -> str:
    """Put a text on one line, its line ends shown as a sign."""
    return one_line(text.replace("\n", "⏎"))


def corpus_view(prepared: Prepared) -> RenderableType:
    """Lay out how many documents were read, dropped and changed, and what was written."""
    reading: dict[str, Any] = dict(prepared.train["reading"])
    counts = {tr("read"): reading["read"]}
    if reading["cut"]:
        counts[tr("  of these pieces of longer ones")] = reading["cut"]
    counts |= {tr(f"  dropped: {reason}"): n for reason, n in reading["dropped"].items()}
    counts |= {tr(_CHANGES[name]): n for name, n in reading["changed"].items()}
    documents = Grid((tr("documents"), ""), [(name, f"{n:,}") for name, n in counts.items()])
    unit = TEXT_UNITS[prepared.train["settings"]["reading"]["documents"]]
    totals = _corpus_totals(prepared, reading)
    return Group(documents.terminal(), f"({tr(unit)})", totals.terminal())


def _corpus_totals(prepared: Prepared, reading: Mapping[str, Any]) -> Grid:
    splits = [split for split in (prepared.train, prepared.validation) if split is not None]
    rows = [
        (shown, *(f"{split['totals'][name]:,}" for split in splits))
        for name, shown in (
            ("documents", tr("documents")),
            ("sentences", tr("sentences")),
            ("tokens", tr("tokens")),
            ("characters", tr("characters")),
            ("bytes", tr("bytes")),
        )
    ]
    rows.append((tr("shards"), *(f"{len(split['shards']):,}" for split in splits)))
    # Of all splits together; what is dropped has no token.
    tokens, characters = (
        sum(split["totals"][name] for split in splits) for name in ("tokens", "characters")
    )
    shares = {tr("unknown tokens"): reading["unknown"] / max(tokens, 1)}
    if "lost" in reading:
        shares[tr("characters dropped")] = reading["lost"] / max(characters, 1)
    footer = [(name, f"{share:.2%}", *([""] * (len(splits) - 1))) for name, share in shares.items()]
    return Grid((tr("written"), *(str(split["split"]) for split in splits)), rows, footer=footer)
