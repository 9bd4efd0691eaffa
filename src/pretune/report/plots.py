"""Pictures: attention maps as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pretune.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Fonts for what matplotlib's own font lacks (Chinese, Japanese, Korean), where installed.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Arial Unicode MS",
)
OWN_FONT = "DejaVu Sans"
DPI = 150
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    alone = len(layers) == len(heads) == 1
    count = len(tokens)
    panel = min(max(0.25 * count, 3.0), 14.0) if alone else min(max(0.07 * count, 1.2), 2.5)
    labels = readable(tokens)
    margin = 0.1 * max(len(label) for label in labels) + 0.4
    size = (panel * len(heads) + margin + 0.3, panel * len(layers) + margin + 0.3)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # the backend without a screen, whatever MPLBACKEND says
    axes = figure.subplots(len(layers), len(heads), squeeze=False)
    points = POINTS * panel / count * FILL
    points = min(max(points, SMALLEST_LABEL), LARGEST_LABEL)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            here = axes[row][column]
            here.imshow(maps[row, column].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="equal")
            here.set_title(f"layer {layer}, head {head}", fontsize=10 if alone else 6, pad=2)
            left, bottom = column == 0, row == len(layers) - 1
            _label(here, labels, points, left=left, bottom=bottom)
    write_png(figure, path)


def _label(axes: Axes, labels: list[str], points: float, *, left: bool, bottom: bool) -> None:
    """Tokens at the outer edges alone: all maps have the same."""
    places = range(len(labels))
    style: dict[str, Any] = {"fontsize": points, "family": font_families()}
    axes.set_xticks([])
    axes.set_yticks([])
    if bottom:
        axes.set_xticks(places, labels, rotation=90, **style)
    if left:
        axes.set_yticks(places, labels, **style)
    axes.tick_params(length=0, pad=1)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a token may be "$"


def write_png(figure: Figure, path: Path, option: str = "--output") -> None:
    """Write a picture.

    Args:
        figure: to write.
        path: the PNG.
        option: of the command line, that says where.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error})", f"Choose another {option}."
        ) from None


@lru_cache(maxsize=1)
def font_families() -> list[str]:
    """The font of matplotlib, then those of `FALLBACK_FONTS` that this machine has."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return [OWN_FONT, *(name for name in FALLBACK_FONTS if name in there)]


def readable(tokens: Sequence[str]) -> list[str]:
    """The tokens; a character that no font here can draw becomes its number, e.g. `U+597D`."""
    drawable = _drawable()
    return ["".join(c if ord(c) in drawable else f"U+{ord(c):04X}" for c in t) for t in tokens]


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known: set[int] = set()
    for family in font_families():
        known.update(get_font(findfont(FontProperties(family=family))).get_charmap())
    return frozenset(known)
