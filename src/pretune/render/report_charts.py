"""The pictures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pretune.evaluation.calibration import Reliability
from pretune.evaluation.explain import Explained
from pretune.render.charts import (
    COLOURS,
    LONGEST_LABEL,
    chart_labels,
    cut_label,
    label_ticks,
    new_figure,
    readable,
)
from pretune.render.course import Course

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Inches of a page in a browser.
PAGE_WIDTH = 10.2
#: Confusion matrices of more labels have no figures in their cells.
MOST_CELLS = 20


def course_chart(course: Course) -> Figure:
    """A panel for each figure over the updates; training and validation share one."""
    names = course.names
    rows = -(-len(names) // 2)
    figure = new_figure(7.5, 1.9 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for colour, (kind, curves) in zip(COLOURS, course.curves.items(), strict=False):
            if name in curves:
                steps, values = curves[name]
                # The points of a training are too many to be seen; of evaluations they are few.
                axes.plot(
                    steps, values, color=colour, label=kind, marker="." if len(steps) < 40 else ""
                )
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", integer=True)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set_fontsize(7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("updates", fontsize=8)
    return figure


def confusion_chart(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Figure:
    """Rows are the truth; a cell has its share of the row, and the count."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = len(labels) <= MOST_CELLS
    side = max((0.62 if cells else 0.17) * len(labels), 2.0)
    figure = new_figure(side + 2.2, side + 1.4)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _square_ticks(axes, labels, chart_labels(labels), 8 if cells else 6)
    axes.set_xlabel("the model's answer")
    axes.set_ylabel("the truth")
    if cells:
        for (i, j), share in np.ndenumerate(shares):
            text = f"{share:.0%}\n{counts[i, j]:,.0f}"
            colour = "white" if share > 0.62 else "black"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    return figure


def reliability_chart(series: Mapping[str, Reliability]) -> Figure:
    """Confidence against accuracy, and below how many decisions there are of each confidence."""
    figure = new_figure(4.6, 5.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="#8a94a0", linestyle="--", label="as sure as right")
    for colour, (name, found) in zip(COLOURS, series.items(), strict=False):
        there = found.counts > 0
        points = found.confidence[there], found.accuracy[there]
        above.plot(*points, color=colour, marker="o", label=f"{name}: ECE {found.ece:.3f}")
        edges = np.linspace(0, 1, len(found.counts) + 1)
        below.stairs(found.counts, edges, color=colour)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    above.legend(fontsize=8, frameon=False, loc="upper left")
    below.set(xlabel="confidence", ylabel="how many")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def scatter_chart(truth: Sequence[float], answers: Sequence[float]) -> Figure:
    """True scores against those of the model; on the line they are the same."""
    figure = new_figure(4.6, 4.6)
    axes = figure.subplots()
    low, high = min(*truth, *answers), max(*truth, *answers)
    axes.plot([low, high], [low, high], color="#8a94a0", linestyle="--")
    axes.scatter(truth, answers, s=8, alpha=0.4, color=COLOURS[0], linewidths=0)
    axes.set(xlabel="the truth", ylabel="the model's answer")
    axes.grid(alpha=0.3)
    return figure


def attention_chart(explained: Explained) -> Figure:
    """A map for each layer: how the tokens (rows) look at each other, over all heads."""
    assert explained.attention is not None  # noqa: S101 - asked for where there is one
    maps, labels = (
        explained.attention.numpy(),
        [cut_label(token) for token in readable(explained.tokens)],
    )
    # No smaller than can be read, and as many side by side as a page is wide.
    each = min(0.17, max(0.095, 4.3 / len(labels)))
    margin = 0.055 * min(max(map(len, labels)), LONGEST_LABEL) + 0.25
    panel = max(each * len(labels), 1.5)
    columns = min(len(maps), 3, max(1, int(PAGE_WIDTH / (panel + margin))))
    rows = -(-len(maps) // columns)
    figure = new_figure(columns * (panel + margin), rows * (panel + margin + 0.2))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for layer, (axes, one) in enumerate(zip(panels, maps, strict=False)):
        axes.imshow(one, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}", fontsize=8)
        _square_ticks(axes, explained.tokens, labels, min(8.0, 58 * each), steep=True)
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    return figure


def _square_ticks(
    axes: Axes, labels: Sequence[str], shown: Sequence[str], size: float, *, steep: bool = False
) -> None:
    """The same labels on both axes; below they are turned where they are long."""
    turned: dict[str, Any] = {"rotation": 90} if steep else {}
    if not steep and max(len(cut_label(label)) for label in labels) > 3:
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    label_ticks(axes.xaxis, labels, shown, fontsize=size, **turned)
    label_ticks(axes.yaxis, labels, shown, fontsize=size)
    axes.tick_params(length=0)
