"""How results look in a notebook: as HTML, and as charts. See `text/notebook.py`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretune.data.columns import as_text
from pretune.errors import PretuneError
from pretune.evaluation.compare import Compared
from pretune.evaluation.explain import Explained
from pretune.experiments.history import MetricHistory
from pretune.inference.predictions import Predictions
from pretune.inspection.describe import Description
from pretune.render.data_report import charts, description_grids
from pretune.render.escaping import for_html, one_line, shortened
from pretune.render.explained_views import ColouredTokens
from pretune.render.grid import Grid
from pretune.render.result_views import (
    comparison_grids,
    confusion_grid,
    evaluation_grid,
    run_grid,
)
from pretune.text.notebook import Displayed
from pretune.training.live_run import LiveRun
from pretune.training.run_folder import METRICS
from pretune.training.run_result import RunResult
from pretune.training.validation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Answers that a table shows, and characters of a cell.
SHOWN_ANSWERS, CELL = 20, 120
#: Bars of a chart of answers.
MOST_BARS = 20
#: Width and height of the live curve, in pixels.
CURVE = (560, 120)
#: The colours of its lines.
_CURVE_COLOURS = {"training": "#0072b2", "validation": "#e69f00"}


# As HTML


@singledispatch
def html_of(result: Displayed) -> str:
    """Write a result as HTML, with all text from data escaped."""
    rows = result.table_rows()
    if len(rows) == 1:
        return Grid(("", "value"), [(k, _cell(v)) for k, v in rows[0].items()]).html()
    return _table(rows, len(rows))


@html_of.register(Evaluation)
def _(result: Evaluation) -> str:
    confusion = confusion_grid(result.details)
    return "".join(grid.html() for grid in (evaluation_grid(result), confusion) if grid is not None)


@html_of.register(RunResult)
def _(result: RunResult) -> str:
    return run_grid(result).html()


@html_of.register(Predictions)
def _(result: Predictions[Any]) -> str:
    return _table(result.table_rows()[:SHOWN_ANSWERS], len(result))


@html_of.register(Description)
def _(result: Description) -> str:
    return "".join(grid.html() for grid in description_grids(result))


@html_of.register(Compared)
def _(result: Compared) -> str:
    note = "" if result.note is None else f"<p>{for_html(result.note)}</p>"
    return "".join(grid.html() for grid in comparison_grids(result)) + note


@html_of.register(Explained)
def _(result: Explained) -> str:
    return ColouredTokens(result).html()


@html_of.register(LiveRun)
def _(result: LiveRun) -> str:
    """Draw a bar, the curves, the last figures and what people were told."""
    share = result.done / result.total if result.total else float(result.state == "done")
    place = f" {result.done:,} / {result.total:,}" if result.total else ""
    line = f"{result.what}{place}  {result.figures}  {_left(result)}"
    bar = (
        '<div style="background: rgba(128, 128, 128, 0.25); height: 8px; max-width: 560px">'
        f'<div style="background: #0072b2; height: 8px; width: {min(share, 1):.1%}"></div></div>'
    )
    figures = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    last = f"<div>validation: {for_html(figures)}</div>" if result.metrics else ""
    notes = "\n".join(result.notes)
    told = (
        f"<details><summary>{for_html(shortened(one_line(result.notes[-1]), CELL))}</summary>"
        f'<pre style="white-space: pre-wrap">{for_html(notes)}</pre></details>'
        if result.notes
        else ""
    )
    return f"<div>{for_html(line)}</div>{bar}{_curves(result.curves)}{last}{told}"


def _left(run: LiveRun) -> str:
    """Tell how long the work will take, or that it has ended."""
    if run.state != "running":
        return run.state
    made = run.done - run.first
    if made <= 0 or not run.total:
        return ""
    seconds = round((time.monotonic() - run.started) / made * (run.total - run.done))
    return f"{seconds // 60}:{seconds % 60:02d} left"


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw losses over the updates as SVG; nothing for less than two points."""
    known = {
        kind: [(x, y) for x, y in points if math.isfinite(y)] for kind, points in curves.items()
    }
    every = [point for points in known.values() for point in points]
    if len(every) < 2:
        return ""
    xs, ys = zip(*every, strict=True)
    (width, height), pad = CURVE, 4
    across, up = max(xs) - min(xs) or 1, max(ys) - min(ys) or 1
    lines = []
    for kind, points in known.items():
        places = [
            (
                pad + (x - min(xs)) / across * (width - 2 * pad),
                height - pad - (y - min(ys)) / up * (height - 2 * pad),
            )
            for x, y in points
        ]
        colour = _CURVE_COLOURS.get(kind, "#009e73")
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline fill="none" stroke="{colour}" points="{path}"/>')
        if len(places) < 20:  # a few evaluations are points
            lines += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places
            ]
    legend = ", ".join(
        f'<span style="color: {_CURVE_COLOURS.get(kind, "#009e73")}">{for_html(kind)}</span>'
        for kind in known
    )
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="loss">'
        f"{''.join(lines)}</svg>"
        f"<div>loss {min(ys):.4f} to {max(ys):.4f}: {legend}</div>"
    )


def _table(rows: Sequence[Mapping[str, Any]], count: int) -> str:
    """Tabulate rows by the names of their columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    more = f"the first {len(rows):,} of {count:,}" if count > len(rows) else ""
    return Grid(names, cells, more, numbers=()).html()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return shortened(one_line(as_text(value) or ""), CELL)


# As charts


@singledispatch
def figure_of(result: Displayed) -> Figure:
    """Draw a result.

    Raises:
        PretuneError: there is nothing to draw.
    """
    raise PretuneError(f"there is no chart of {type(result).__name__}", "It shows itself as HTML.")


@figure_of.register(Evaluation)
def _(result: Evaluation) -> Figure:
    from pretune.render.charts import bar_chart
    from pretune.render.report_charts import confusion_chart

    if "confusion" in result.details and "labels" in result.details:
        return confusion_chart(result.details["labels"], result.details["confusion"])
    known = {name: value for name, value in result.metrics.items() if math.isfinite(value)}
    return bar_chart([*known], {"value": [*known.values()]}, "value")


@figure_of.register(RunResult)
def _(result: RunResult) -> Figure:
    from pretune.render.report_charts import history_chart

    history = MetricHistory.read(Path(result.folder) / METRICS)
    if not history.panels:
        raise PretuneError(
            f"{result.folder}: no record of the training there ({METRICS})",
            "The chart is made of it: keep the folder of the run.",
        )
    return history_chart(history)


@figure_of.register(Predictions)
def _(result: Predictions[Any]) -> Figure:
    """Draw how often each label is given; of a single answer, the score of each label."""
    from pretune.render.charts import bar_chart

    if len(result) == 1 and (ranked := result[0].ranked()):
        names, scores = zip(*ranked[:MOST_BARS], strict=True)
        return bar_chart(names, {"score": scores}, "score")
    given = [label for answer in result for label in _labels_of(answer)]
    if not given:
        raise PretuneError("these answers have no labels to count", "to_dataframe() has them all.")
    names, counts = zip(*Counter(given).most_common(MOST_BARS), strict=True)
    return bar_chart(names, {"answers": [float(n) for n in counts]}, "answers")


def _labels_of(answer: Any) -> list[str]:
    """The labels that an answer gives."""
    if answer.given is not None:
        return list(answer.given)
    label = answer.to_dict().get("label")
    return [] if label is None else [str(label)]


@figure_of.register(Description)
def _(result: Description) -> Figure:
    for facts in result.files:
        for _name, _caption, figure in charts(facts):
            return figure
    raise PretuneError(
        "there is nothing to draw of these data", "They have neither labels nor words."
    )


@figure_of.register(Explained)
def _(result: Explained) -> Figure:
    from pretune.render.charts import bar_chart

    names = [one_line(text) or "·" for text in result.texts]
    figure = bar_chart(names, {"attribution": list(result.attributions)}, "attribution")
    # What speaks against the answer lies to the left of 0.
    strongest = max(map(abs, result.attributions), default=0.0) or 1.0
    figure.axes[0].set_xlim(-1.2 * strongest, 1.2 * strongest)
    return figure
