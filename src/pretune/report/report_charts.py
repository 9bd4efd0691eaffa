"""The pictures of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretune.infer.explain import Explained
from pretune.report.calibration import Reliability
from pretune.report.charts import COLOURS, chart_labels, font_families, new_figure, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def read_course(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values by the name of the figure; a line that is cut off is passed over."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            step = float(entry["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in entry.items():
            if "/" in name and isinstance(value, int | float):
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value))
    return found


def course_chart(course: Mapping[str, tuple[list[float], list[float]]]) -> Figure:
    """A panel for each figure; training and validation share one."""
    names = list(dict.fromkeys(name.partition("/")[2] for name in course))
    rows = -(-len(names) // 2)
    figure = new_figure(7.0, 2.0 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for i, kind in enumerate(("train", "validation")):
            if f"{kind}/{name}" in course:
                steps, values = course[f"{kind}/{name}"]
                axes.plot(steps, values, color=COLOURS[i], label=kind, marker="." * (i == 1))
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure


def confusion_chart(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> Figure:
    """Rows are the truth and sum to 1; the cells have the counts too."""
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(max(0.65 * len(labels) + 1.6, 3.5), 14.0)
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _ticks(axes, chart_labels(labels), 8)
    axes.set_xlabel("the model's answer")
    axes.set_ylabel("the truth")
    if len(labels) <= 20:
        for (i, j), share in np.ndenumerate(shares):
            shade = "white" if share > 0.5 else "black"
            text = f"{share:.0%}\n{counts[i, j]:.0f}"
            axes.text(j, i, text, ha="center", va="center", color=shade, fontsize=6)
    return figure


def reliability_chart(series: Mapping[str, Reliability]) -> Figure:
    """Confidence against accuracy; on the diagonal a model is as often right as it is sure."""
    figure = new_figure(4.2, 4.2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#8a94a0", linestyle="--")
    for i, (name, found) in enumerate(series.items()):
        there = found.counts > 0
        label = f"{name}: ECE {found.ece:.3f}"
        axes.plot(
            *(found.confidence[there], found.accuracy[there]),
            color=COLOURS[i],
            marker="o",
            label=label,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
    return figure


def attention_chart(explained: Explained) -> Figure:
    """A map for each layer: how the tokens (rows) look at each other, over all heads."""
    assert explained.attention is not None  # noqa: S101 - asked for where there is one
    maps, labels = explained.attention.numpy(), readable(explained.tokens)
    panel = min(max(0.16 * len(labels), 2.0), 6.0)
    columns = min(len(maps), 3)
    rows = -(-len(maps) // columns)
    figure = new_figure(columns * (panel + 0.6), rows * (panel + 0.8))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for layer, (axes, one) in enumerate(zip(panels, maps, strict=False)):
        axes.imshow(one, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}", fontsize=8)
        _ticks(axes, labels, min(8.0, max(2.0, 60 * panel / len(labels))))
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    return figure


def _ticks(axes: Axes, labels: Sequence[str], size: float) -> None:
    style: dict[str, Any] = {"fontsize": size, "family": font_families()}
    axes.set_xticks(range(len(labels)), labels, rotation=90, **style)
    axes.set_yticks(range(len(labels)), labels, **style)
    axes.tick_params(length=0)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a label may be "$"
