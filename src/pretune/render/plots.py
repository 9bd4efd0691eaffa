"""Pictures: attention maps as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pretune.render.charts import label_ticks, new_figure, readable, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Points an inch, and how much of a row of the map a label may fill.
POINTS, FILL = 72.0, 0.85
SMALLEST_LABEL, LARGEST_LABEL = 1.5, 10.0


def draw_attention(
    maps: Tensor, tokens: Sequence[str], layers: Sequence[int], heads: Sequence[int], path: Path
) -> None:
    """Draw attention maps side by side: a row for each layer, a column for each head.

    In each map a row is a token that looks, a column one that is looked at; white is 0, dark is 1.

    Args:
        maps: `[len(layers), len(heads), T, T]`, rows summing to 1.
        tokens: the T labels.
        layers: their numbers, for the titles.
        heads: their numbers, for the titles.
        path: the PNG to write.

    Raises:
        RunError: the file cannot be written.
    """
    alone = len(layers) == len(heads) == 1
    count = len(tokens)
    panel = min(max(0.25 * count, 3.0), 14.0) if alone else min(max(0.07 * count, 1.2), 2.5)
    shown = readable(tokens)
    margin = 0.1 * max(map(len, shown)) + 0.4
    size = (panel * len(heads) + margin + 0.3, panel * len(layers) + margin + 0.3)
    figure = new_figure(*size)
    axes = figure.subplots(len(layers), len(heads), squeeze=False)
    points = POINTS * panel / count * FILL
    points = min(max(points, SMALLEST_LABEL), LARGEST_LABEL)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            here = axes[row][column]
            here.imshow(maps[row, column].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="equal")
            here.set_title(f"layer {layer}, head {head}", fontsize=10 if alone else 6, pad=2)
            left, bottom = column == 0, row == len(layers) - 1
            _label(here, tokens, shown, points, left=left, bottom=bottom)
    write_png(figure, path)


def _label(
    axes: Axes,
    tokens: Sequence[str],
    shown: Sequence[str],
    points: float,
    *,
    left: bool,
    bottom: bool,
) -> None:
    """Tokens at the outer edges alone: all maps have the same."""
    axes.set_xticks([])
    axes.set_yticks([])
    if bottom:
        label_ticks(axes.xaxis, tokens, shown, fontsize=points, rotation=90)
    if left:
        label_ticks(axes.yaxis, tokens, shown, fontsize=points)
    axes.tick_params(length=0, pad=1)
