"""Charts of a run's report: training history, confusion, reliability, true against predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pretune.evaluation.calibration import Reliability
from pretune.experiments.history import MetricHistory
from pretune.render.charts import COLOURS, chart_labels, cut_label, label_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Confusion matrices of more labels have no numbers in their cells.
MAX_NUMBERED_LABELS = 20
#: Curves of at least this many points are drawn without a mark at each point.
_MANY_POINTS = 40
_GUIDE_COLOUR = "#8a94a0"


def history_chart(history: MetricHistory) -> Figure:
    """Draw a panel for each metric over the updates; training and validation share a panel."""
    names = history.names
    rows = -(-len(names) // 2)
    figure = new_figure(7.5, 1.9 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for colour, (kind, curves) in zip(COLOURS, history.curves.items(), strict=False):
            if name in curves:
                steps, values = curves[name]
                mark = "." if len(steps) < _MANY_POINTS else ""
                axes.plot(steps, values, color=colour, label=kind, marker=mark)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", integer=True)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_fontsize(7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    # An odd number of metrics leaves the last panel empty.
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("updates", fontsize=8)
    return figure


def confusion_chart(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Figure:
    """Draw a confusion matrix; each cell shows its share of the row (the truth) and its count.

    Args:
        labels: the names of the classes.
        matrix: `[truth][predicted]` counts.
    """
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
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
    axes.set_xlabel("the model's answer")
    axes.set_ylabel("the truth")
    if numbered:
        for (i, j), share in np.ndenumerate(shares):
            text = f"{share:.0%}\n{counts[i, j]:,.0f}"
            colour = "white" if share > 0.62 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    return figure


def reliability_chart(series: Mapping[str, Reliability]) -> Figure:
    """Draw confidence against accuracy, and below how many decisions have each confidence."""
    figure = new_figure(4.6, 5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=_GUIDE_COLOUR, linestyle="--", label="as sure as right")
    for colour, (name, bins) in zip(COLOURS, series.items(), strict=False):
        # An empty bin has neither confidence nor accuracy.
        filled = bins.counts > 0
        points = bins.confidence[filled], bins.accuracy[filled]
        above.plot(*points, color=colour, marker="o", label=f"{name}: ECE {bins.ece:.3f}")
        below.stairs(bins.counts, np.linspace(0, 1, len(bins.counts) + 1), color=colour)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    above.legend(fontsize=8, frameon=False, loc="upper left")
    below.set(xlabel="confidence", ylabel="how many")
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
    axes.set(xlabel="the truth", ylabel="the model's answer")
    axes.grid(alpha=0.3)
    return figure
