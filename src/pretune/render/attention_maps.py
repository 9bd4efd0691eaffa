"""Pictures of attention: in each map a row is a token that looks, a column a token looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pretune.evaluation.explain import Explained
from pretune.render.charts import (
    LONGEST_LABEL,
    cut_label,
    label_ticks,
    new_figure,
    readable,
    write_png,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Points an inch, and the share of a row of a map that its label fills.
POINTS, FILL = 72.0, 0.85
SMALLEST_LABEL, LARGEST_LABEL = 1.5, 10.0
#: Width of a page in a browser, in inches.
PAGE_WIDTH = 10.2


def draw_attention(
    maps: Tensor, tokens: Sequence[str], layers: Sequence[int], heads: Sequence[int], path: Path
) -> None:
    """Draw attention maps side by side: a row for each layer, a column for each head.

    Args:
        maps: `[len(layers), len(heads), T, T]`, rows summing to 1; white is 0, dark is 1.
        tokens: the T labels.
        layers: numbers of the layers, for the titles.
        heads: numbers of the heads, for the titles.
        path: the PNG file to write.

    Raises:
        RunError: the file cannot be written.
    """
    # A single map is large enough to read every label; several share the picture.
    alone = len(layers) == len(heads) == 1
    count = len(tokens)
    panel = min(max(0.25 * count, 3.0), 14.0) if alone else min(max(0.07 * count, 1.2), 2.5)
    shown = readable(tokens)
    margin = 0.1 * max(map(len, shown)) + 0.4
    figure = new_figure(panel * len(heads) + margin + 0.3, panel * len(layers) + margin + 0.3)
    points = min(max(POINTS * panel / count * FILL, SMALLEST_LABEL), LARGEST_LABEL)
    panels = figure.subplots(len(layers), len(heads), squeeze=False)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            axes = panels[row][column]
            axes.imshow(maps[row, column].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="equal")
            axes.set_title(f"layer {layer}, head {head}", fontsize=10 if alone else 6, pad=2)
            # All maps have the same tokens: labels stand only at the outer edges.
            axes.set_xticks([])
            axes.set_yticks([])
            if row == len(layers) - 1:
                label_ticks(axes.xaxis, tokens, shown, fontsize=points, rotation=90)
            if column == 0:
                label_ticks(axes.yaxis, tokens, shown, fontsize=points)
            axes.tick_params(length=0, pad=1)
    write_png(figure, path)


def attention_chart(explained: Explained) -> Figure:
    """Draw a map for each layer of an explained example, the mean over its heads."""
    assert explained.attention is not None  # noqa: S101 - asked for only where there is one
    maps = explained.attention.numpy()
    labels = [cut_label(token) for token in readable(explained.tokens)]
    # A cell no smaller than can be read, and as many maps side by side as a page is wide.
    cell = min(0.17, max(0.095, 4.3 / len(labels)))
    margin = 0.055 * min(max(map(len, labels)), LONGEST_LABEL) + 0.25
    panel = max(cell * len(labels), 1.5)
    columns = min(len(maps), 3, max(1, int(PAGE_WIDTH / (panel + margin))))
    rows = -(-len(maps) // columns)
    figure = new_figure(columns * (panel + margin), rows * (panel + margin + 0.2))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    points = min(8.0, 58 * cell)
    for layer, (axes, weights) in enumerate(zip(panels, maps, strict=False)):
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}", fontsize=8)
        label_ticks(axes.xaxis, explained.tokens, labels, fontsize=points, rotation=90)
        label_ticks(axes.yaxis, explained.tokens, labels, fontsize=points)
        axes.tick_params(length=0)
    # The last row of panels may be longer than the row of maps.
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    return figure
