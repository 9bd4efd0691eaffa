"""Charts of a run's report: training history, confusion, reliability, true against predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pretune.evaluation.calibration import Reliability
from pretune.experiments.history import LAST, MetricHistory
from pretune.render.charts import (
    COLOURS,
    chart_labels,
    cut_label,
    label_ticks,
    new_figure,
    write_words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: Confusion matrices of more labels have no numbers in their cells.
MAX_NUMBERED_LABELS = 20
#: Curves of at least this many points are drawn without a mark at each point.
_MANY_POINTS = 40
_GUIDE_COLOUR = "#8a94a0"
#: Lines of several metrics in one panel.
_LINES = ("-", "--", ":")
#: At most so many panels stand in two columns; more stand in three.
_TWO_COLUMNS = 6
#: Values that differ by at most this share of their size are the same but for rounding.
_ROUNDING = 1e-5


def history_chart(history: MetricHistory) -> Figure:
    """Draw metrics over the updates, a panel for each or for several that belong together.

    Training and validation share a panel and differ in colour, metrics of one panel in the line.
    """
    panels = history.panels
    columns = 2 if len(panels) <= _TWO_COLUMNS else 3
    rows = -(-len(panels) // columns)
    figure = new_figure(3.5 * columns, 1.9 * rows + 0.3)
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, names in zip(every, panels, strict=False):
        _draw_panel(axes, history, names)
    # The last row may have empty places.
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    # What the colours mean is told once, where it covers no curve.
    kinds = [_key(color=colour) for colour in COLOURS[: len(history.curves)]]
    legend = figure.legend(
        kinds, list(history.curves), loc="outside upper left", ncols=2, fontsize=8, frameon=False
    )
    for text, name in zip(legend.get_texts(), history.curves, strict=True):
        write_words(text, "validation" if name == "validation" else "training")
    write_words(figure.supxlabel("", fontsize=8), "updates")
    return figure


def _draw_panel(axes: Axes, history: MetricHistory, names: Sequence[str]) -> None:
    """Draw the curves of some metrics, which share the vertical axis."""
    for colour, curves in zip(COLOURS, history.curves.values(), strict=False):
        for line, name in zip(_LINES, names, strict=False):
            if name in curves:
                steps, values = curves[name]
                mark = "." if len(steps) < _MANY_POINTS else ""
                axes.plot(steps, values, color=colour, linestyle=line, marker=mark)
    shown = [name.replace("_", " ") for name in names]
    title = axes.set_title(", ".join(shown), fontsize=9)
    if set(names) <= set(LAST):  # names of metrics are the same in every language
        write_words(title, title.get_text())
    if len(names) > 1:
        lines = [_key(color="black", linestyle=line) for line in _LINES[: len(names)]]
        axes.legend(lines, shown, fontsize=7, frameon=False)
    axes.tick_params(labelsize=7)
    axes.locator_params(axis="x", integer=True)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    axes.yaxis.get_offset_text().set_fontsize(7)
    axes.grid(alpha=0.3)
    _show_as_flat(axes)


def _key(**style: Any) -> Line2D:
    """Make a line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _show_as_flat(axes: Axes) -> None:
    """Keep differences from rounding alone from filling a panel."""
    low, high = axes.dataLim.intervaly
    size = max(abs(low), abs(high))
    if high - low < _ROUNDING * size:
        axes.set_ylim(low - 0.1 * size, high + 0.1 * size)


def frontier_chart(history: MetricHistory, metrics: Sequence[str]) -> Figure:
    """Draw what each evaluation gained against how far the model had come from its reference.

    Args:
        history: of the run.
        metrics: of the validation data, beside `kl`; a panel for each.
    """
    figure = new_figure(0.5 + 3.9 * len(metrics), 3.4)
    panels = figure.subplots(1, len(metrics), squeeze=False).ravel()
    for axes, metric in zip(panels, metrics, strict=True):
        steps, far, gained = zip(*history.frontier(metric), strict=True)
        axes.plot(far, gained, color=_GUIDE_COLOUR, linewidth=0.8, zorder=1)
        points = axes.scatter(far, gained, c=steps, s=18, cmap="viridis_r", zorder=2)
        # The ends have names: between them the colour tells the way.
        ends = {0: f"{steps[0]:.0f}", len(steps) - 1: f"{steps[-1]:.0f}"}
        for place, name in ends.items():
            at, offset = (far[place], gained[place]), (4, 4)
            mark = axes.annotate(name, at, offset, textcoords="offset points", fontsize=7)
            if steps[place] == 0:
                write_words(mark, "before training")
        axes.set_ylabel(metric.replace("_", " "))
        write_words(axes.xaxis.label, "KL divergence from the reference (nats per reply)")
        axes.grid(alpha=0.3)
        axes.margins(x=0.12, y=0.1)
    bar = figure.colorbar(points, ax=panels.tolist())
    write_words(bar.ax.yaxis.label, "updates")
    return figure


def confusion_chart(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Figure:
    """Draw a confusion matrix; each cell shows its share of the row (the truth) and its count.

    A row without examples has no shares.

    Args:
        labels: the names of the classes.
        matrix: `[truth][predicted]` counts.
    """
    counts = np.asarray(matrix, dtype=float)
    totals = counts.sum(1)
    shares = counts / np.maximum(totals[:, None], 1)
    numbered = len(labels) <= MAX_NUMBERED_LABELS
    side = max((0.62 if numbered else 0.17) * len(labels), 2.0)
    figure = new_figure(side + 2.2, side + 1.4)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # The labels stand on both axes; below the matrix they are turned if they are long.
    shown, size = chart_labels(labels), 8 if numbered else 6
    turned: dict[str, Any] = {}
    if max(len(cut_label(label)) for label in labels) > 3:
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    label_ticks(axes.xaxis, labels, shown, fontsize=size, **turned)
    label_ticks(axes.yaxis, labels, shown, fontsize=size)
    axes.tick_params(length=0)
    write_words(axes.xaxis.label, "predicted label")
    write_words(axes.yaxis.label, "true label")
    if numbered:
        for (i, j), share in np.ndenumerate(shares):
            text = f"{share:.0%}\n{counts[i, j]:,.0f}" if totals[i] else "0"
            colour = "white" if share > 0.62 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    return figure


def reliability_chart(series: Mapping[str, Reliability]) -> Figure:
    """Draw confidence against accuracy, and below how many decisions have each confidence."""
    figure = new_figure(4.6, 5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=_GUIDE_COLOUR, linestyle="--", label="perfect calibration")
    for colour, (name, bins) in zip(COLOURS, series.items(), strict=False):
        # An empty bin has neither confidence nor accuracy.
        filled = bins.counts > 0
        points = bins.confidence[filled], bins.accuracy[filled]
        above.plot(*points, color=colour, marker="o", label=f"{name}: ECE {bins.ece:.3f}")
        below.stairs(bins.counts, np.linspace(0, 1, len(bins.counts) + 1), color=colour)
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    for text in above.legend(fontsize=8, frameon=False, loc="upper left").get_texts():
        write_words(text, text.get_text())
    for label, words in (
        (above.yaxis.label, "accuracy"),
        (below.xaxis.label, "confidence"),
        (below.yaxis.label, "count"),
    ):
        write_words(label, words)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def scatter_chart(truth: Sequence[float], predicted: Sequence[float]) -> Figure:
    """Draw true scores against predicted ones, with the line on which they are equal."""
    figure = new_figure(4.6, 4.6)
    axes = figure.subplots()
    low, high = min(*truth, *predicted), max(*truth, *predicted)
    axes.plot([low, high], [low, high], color=_GUIDE_COLOUR, linestyle="--")
    axes.scatter(truth, predicted, s=8, alpha=0.4, color=COLOURS[0], linewidths=0)
    write_words(axes.xaxis.label, "true score")
    write_words(axes.yaxis.label, "predicted score")
    axes.grid(alpha=0.3)
    return figure
