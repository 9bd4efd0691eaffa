"""What the learning rate and the batch will be over a run: figures, a chart, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretune.bundle.bundle import load
from pretune.data.batch_order import DataOrder
from pretune.errors import PretuneError, RunError
from pretune.recipe.recipe import Recipe
from pretune.render.charts import new_figure, write_png
from pretune.tasks.builtin import task_class
from pretune.tasks.features import featurize
from pretune.tokenizers.added_tokens import add_tokens
from pretune.training.data import fit, read_data, tokenizer_of
from pretune.training.logging import Reporter
from pretune.training.schedule import BatchSize, Schedule, planned_updates

#: Of the chart in the terminal, in characters, and how many points a picture has.
WIDTH, HEIGHT, POINTS = 64, 8, 1000
#: Braille characters have 4 rows of 2 dots: the bit of each (Unicode standard, section 21.1).
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True)
class Point:
    """One update.

    Attributes:
        name: what is special about it.
        update: its number, counted from 1.
        learning_rate: of this update.
        batch: its size, in examples or tokens.
    """

    name: str
    update: int
    learning_rate: float
    batch: int


@dataclass(frozen=True)
class Plan:
    """The course of a run before it is run.

    Attributes:
        schedule: of the learning rate.
        batches: the size of each.
        peak: the highest learning rate.
        unit: of the batches, "examples" or "tokens".
    """

    schedule: Schedule
    batches: BatchSize
    peak: float
    unit: str

    @classmethod
    def of(cls, recipe: Recipe) -> Plan:
        """The plan of a recipe: of `max_steps` updates, or of as many as its data makes.

        Raises:
            RunError: the data or the tokenizer cannot be read, or there is nothing to train on.
        """
        options = recipe.train
        if options.max_steps is not None:
            total, batches = options.max_steps, BatchSize.of(options, options.max_steps)
        else:
            order = DataOrder(
                _lengths(recipe), seed=recipe.seed, in_tokens=options.batch_tokens is not None
            )
            total, batches = planned_updates(order, options)
        unit = "examples" if options.batch_size is not None else "tokens"
        return cls(Schedule.of(options, total), batches, options.learning_rate, unit)

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        return self.peak * self.schedule.factor(step)

    def points(self) -> list[Point]:
        """The updates worth a look, in order; one that is several things has several names."""
        total, last = self.schedule.total, self.schedule.total - 1
        steps = [("start", 0)]
        if self.schedule.warmup:
            steps.append(("end of warm-up", self.schedule.warmup))
        if self.batches.updates:
            steps.append(("whole batch", self.batches.updates))
        steps += [(f"{quarter}/4", quarter * total // 4) for quarter in (1, 2, 3)]
        if self.schedule.kind == "wsd":
            steps.append(("start of decay", self.schedule.fall))
        steps.append(("end", last))
        names: dict[int, list[str]] = {}
        for name, step in steps:
            names.setdefault(min(step, last), []).append(name)
        return [
            Point(", ".join(names[step]), step + 1, self.rate(step), self.batches.at(step))
            for step in sorted(names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        points = [asdict(point) for point in self.points()]
        return {**asdict(self), "points": points}


def _lengths(recipe: Recipe) -> NDArray[Any]:
    """Tokens of each training feature."""
    try:
        records, _ = read_data(recipe)
        task = task_class(recipe.task.name)(recipe.task)
        fit(task, records)
        model, named = recipe.model, tokenizer_of(recipe, records)
        tokenizer = load(model.source, bare=True, tokenizer=named).tokenizer
        add_tokens(tokenizer, model.new_tokens)
        with Reporter() as reporter, reporter.working("reading train", len(records)) as done:
            lengths = featurize(task, records, tokenizer, progress=done).lengths
    except PretuneError as error:
        raise RunError(
            f"how many updates there are depends on the data and the tokenizer: {error}",
            "Or say it: --updates N (or train.max_steps=N).",
        ) from None
    if not len(lengths):
        raise RunError("there is nothing to train on", "Give data.train more records.")
    return lengths


def plan_view(plan: Plan, *, unicode: bool = True) -> Group:
    """A table and charts for the terminal.

    Args:
        plan: to show.
        unicode: whether the terminal can show more than ASCII.
    """
    table = Table(pad_edge=False)
    for title in ("", "update", "learning rate", f"batch ({plan.unit})"):
        table.add_column(title, justify="right" if title else "left")
    for point in plan.points():
        figures = (f"{point.update:,}", f"{point.learning_rate:.3e}", f"{point.batch:,}")
        table.add_row(point.name, *figures)
    total = plan.schedule.total
    heading = Text(f"{plan.schedule.kind} over {total:,} updates", "bold")
    parts: list[Text | Table] = [heading, table]
    steps = _sampled(total, 2 * WIDTH)
    rates = [plan.rate(step) for step in steps]
    parts.append(_chart("learning rate", rates, f"{plan.peak:.2e}", total, unicode))
    if plan.batches.updates:
        sizes = [plan.batches.at(step) for step in steps]
        whole = f"{plan.batches.whole:,}"
        parts.append(_chart(f"batch ({plan.unit})", sizes, whole, total, unicode))
    return Group(*parts)


def _sampled(total: int, count: int) -> list[int]:
    """`count` updates at even distances, the first and the last among them."""
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def _chart(title: str, values: Sequence[float], top: str, total: int, unicode: bool) -> Text:
    label = max(len(top), 1)
    lines = line_chart(values, WIDTH, HEIGHT, unicode=unicode)
    bar, corner, dash = "│└─" if unicode else "|+-"
    rows = [f"{'':{label}} {title}"]
    for i, line in enumerate(lines):
        name = top if i == 0 else "0" if i == len(lines) - 1 else ""
        rows.append(f"{name:>{label}} {bar}{line}")
    rows.append(f"{'':{label}} {corner}{dash * WIDTH}")
    rows.append(f"{'':{label}}  1{f'{total:,}':>{WIDTH - 1}}")
    return Text("\n" + "\n".join(rows), no_wrap=True, overflow="crop")


def line_chart(
    values: Sequence[float], width: int, height: int, *, unicode: bool = True
) -> list[str]:
    """A line from 0 to its highest value, as `height` lines of `width` characters, top first.

    Args:
        values: from left to right; as many as are drawn are taken at even distances.
        width: characters of a line.
        height: lines.
        unicode: in Braille, with 2 by 4 dots a character; else one `*` a character.
    """
    across, down = (2, 4) if unicode else (1, 1)
    columns, rows = width * across, height * down
    top = max(values) or 1.0
    taken = [values[i] for i in (_sampled(len(values), columns))]
    levels = [rows - 1 - round(value / top * (rows - 1)) for value in taken]
    bits = [[0] * width for _ in range(height)]
    for x, level in enumerate(levels):
        before = levels[max(0, x - 1)]
        # From next to where the line was, so that a steep one has no gaps.
        near = before + (level > before) - (level < before)
        for y in range(min(near, level), max(near, level) + 1):
            bits[y // down][x // across] |= DOTS[y % down][x % across]
    if unicode:
        return ["".join(chr(0x2800 + dots) for dots in line) for line in bits]
    return ["".join("*" if dots else " " for dots in line) for line in bits]


def draw_plan(plan: Plan, path: Path) -> None:
    """Draw the learning rate, and the batch size where it changes, over the updates.

    Args:
        plan: to draw.
        path: the PNG to write.

    Raises:
        RunError: the file cannot be written.
    """
    total = plan.schedule.total
    steps = _sampled(total, min(POINTS, total)) if total > 1 else [0]
    # What has corners is drawn at them too.
    steps = sorted({*steps, *(point.update - 1 for point in plan.points())})
    curves: list[tuple[str, list[float]]] = [("learning rate", [plan.rate(s) for s in steps])]
    if plan.batches.updates:
        curves.append((f"batch ({plan.unit})", [plan.batches.at(s) for s in steps]))
    figure = new_figure(7, 2.6 * len(curves) + 0.4)
    rows = figure.subplots(len(curves), 1, squeeze=False, sharex=True)
    updates = [step + 1 for step in steps]
    for (axes,), (name, values) in zip(rows, curves, strict=True):
        axes.plot(updates, values)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    rows[-1][0].set_xlabel("update")
    write_png(figure, path, "--png")
