"""The schedule of a run as a table, as charts of characters, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.experiments.schedule_plan import SchedulePlan
from pretune.render.charts import new_figure, write_png, write_words
from pretune.render.grid import Grid
from pretune.text.spoken_language import tr

#: Size of a chart in the terminal, in characters; points of a curve in a picture.
WIDTH, HEIGHT, POINTS = 64, 8, 1000
#: Bits of the 4 rows of 2 dots of a Braille character (Unicode standard, section 21.1).
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def schedule_view(plan: SchedulePlan, *, unicode: bool = True) -> Group:
    """Lay out a schedule as a table and charts for a terminal, in ASCII or Unicode."""
    total = plan.schedule.total
    rows = [
        (
            ", ".join(map(tr, point.name.split(", "))),
            f"{point.update:,}",
            f"{point.learning_rate:.3e}",
            f"{point.batch:,}",
        )
        for point in plan.points()
    ]
    batch = tr(f"batch ({plan.unit})")
    header = ("", tr("update"), tr("learning rate"), batch)
    title = tr(f"{plan.schedule.kind} over {total:,} updates")
    parts: list[RenderableType] = [Grid(header, rows, title).terminal()]
    steps = _sampled(total, 2 * WIDTH)
    rates = [plan.rate(step) for step in steps]
    parts.append(_framed(tr("learning rate"), rates, f"{plan.peak:.2e}", total, unicode))
    # The batch size is drawn only where it changes.
    if plan.batches.updates:
        sizes = [plan.batches.at(step) for step in steps]
        parts.append(_framed(batch, sizes, f"{plan.batches.whole:,}", total, unicode))
    return Group(*parts)


def _sampled(total: int, count: int) -> list[int]:
    """Return `count` of `total` places at even distances, the first and the last among them."""
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def _framed(title: str, values: Sequence[float], top: str, total: int, unicode: bool) -> Text:
    """Draw a line chart between axes: from 0 to `top`, from update 1 to `total`."""
    margin = max(len(top), 1)
    lines = line_chart(values, WIDTH, HEIGHT, unicode=unicode)
    bar, corner, dash = "│└─" if unicode else "|+-"
    rows = [f"{'':{margin}} {title}"]
    for i, line in enumerate(lines):
        name = top if i == 0 else "0" if i == len(lines) - 1 else ""
        rows.append(f"{name:>{margin}} {bar}{line}")
    rows.append(f"{'':{margin}} {corner}{dash * WIDTH}")
    rows.append(f"{'':{margin}}  1{f'{total:,}':>{WIDTH - 1}}")
    return Text("\n" + "\n".join(rows), no_wrap=True, overflow="crop")


def line_chart(
    values: Sequence[float], width: int, height: int, *, unicode: bool = True
) -> list[str]:
    """Draw a line from 0 to its highest value, as `height` lines of characters, top first.

    The values drawn are taken at even distances. In Unicode, a Braille character has 2 by 4 dots;
    else a character has at most one `*`.
    """
    across, down = (2, 4) if unicode else (1, 1)
    columns, rows = width * across, height * down
    top = max(values) or 1.0
    levels = [
        rows - 1 - round(values[i] / top * (rows - 1)) for i in _sampled(len(values), columns)
    ]
    bits = [[0] * width for _ in range(height)]
    for x, level in enumerate(levels):
        before = levels[max(0, x - 1)]
        # Start beside the end of the last column, so that a steep line has no gaps.
        near = before + (level > before) - (level < before)
        for y in range(min(near, level), max(near, level) + 1):
            bits[y // down][x // across] |= DOTS[y % down][x % across]
    if unicode:
        return ["".join(chr(0x2800 + dots) for dots in line) for line in bits]
    return ["".join("*" if dots else " " for dots in line) for line in bits]


def draw_schedule(plan: SchedulePlan, path: Path) -> None:
    """Draw the rate and, if it changes, the batch size; raises RunError if that fails."""
    total = plan.schedule.total
    steps = _sampled(total, min(POINTS, total)) if total > 1 else [0]
    # Corners of the curve are drawn at their exact place.
    steps = sorted({*steps, *(point.update - 1 for point in plan.points())})
    curves: list[tuple[str, list[float]]] = [("learning rate", [plan.rate(s) for s in steps])]
    if plan.batches.updates:
        curves.append((f"batch ({plan.unit})", [plan.batches.at(s) for s in steps]))
    figure = new_figure(7, 2.6 * len(curves) + 0.4)
    panels = figure.subplots(len(curves), 1, squeeze=False, sharex=True)
    updates = [step + 1 for step in steps]
    for (axes,), (name, values) in zip(panels, curves, strict=True):
        axes.plot(updates, values)
        write_words(axes.yaxis.label, name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    write_words(panels[-1][0].xaxis.label, "update")
    write_png(figure, path, "--png")
