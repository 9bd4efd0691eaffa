"""Pictures of attention: in each map a row is a token that attends, a column one attended to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pretune.checkpoints.atomic_io import atomic_text
from pretune.decoding.text_stream import visible
from pretune.errors import RunError, not_writable
from pretune.evaluation.explain import Explained
from pretune.render.charts import (
    LONGEST_LABEL,
    can_draw,
    cut_label,
    label_ticks,
    new_figure,
    readable,
    write_png,
    write_words,
)
from pretune.render.page import Drawing, PageSection, Paragraph, page
from pretune.render.svg import figure_svg
from pretune.text.spoken_language import tr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The kinds of files that a picture is written as, by the end of their names.
KINDS = (".png", ".svg", ".html")
#: How cells are drawn: each in one colour, without smoothing between them.
_CELLS: dict[str, Any] = {"cmap": "Blues", "interpolation": "nearest", "aspect": "equal"}
#: Points an inch, and the share of a row of a map that its label fills.
POINTS, FILL = 72.0, 0.85
SMALLEST_LABEL, LARGEST_LABEL = 1.5, 10.0
#: Width of a page in a browser, in inches.
PAGE_WIDTH = 10.2


def check_kind(path: Path) -> None:
    """Raise a RunError for a file that is none of `KINDS` by its name."""
    if path.suffix.lower() in KINDS:
        return
    wrong = f"{path}: attention is not drawn as {path.suffix} files"
    if not path.suffix:
        wrong = f"{path}: its name does not end in the kind of the picture"
    raise RunError(wrong, f"Choose .png, .svg or .html: --output {path.stem}.svg")


def write_attention(figure: Figure, path: Path, title: str) -> None:
    """Write a picture of attention as a PNG, an SVG or a page, whose texts are texts.

    Args:
        figure: from `draw_attention`.
        path: the file; the end of its name says which kind (see `check_kind`).
        title: of the page.

    Raises:
        RunError: the file cannot be written.
    """
    kind = path.suffix.lower()
    if kind == ".png":
        write_png(figure, path)
        return
    text = figure_svg(figure)
    if kind == ".html":
        how = tr(
            "In each map a row is a token that attends, a column a token that is attended to: "
            "white is 0, dark blue is 1, and a row adds up to 1."
        )
        parts = [Paragraph(how), Drawing(text, title)]
        text = page(title, [PageSection(tr("Attention maps"), parts)])
    try:
        atomic_text(path, text)
    except OSError as error:
        raise not_writable(path, "--output", error) from None


def without_signs(tokens: Sequence[str]) -> str | None:
    """Explain that a PNG has code points in the place of some tokens; None where it has none."""
    missing = [token for token in dict.fromkeys(tokens) if not can_draw(token)]
    if not missing:
        return None
    names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return (
        f"No font on this machine has all characters of {len(missing)} tokens ({names}): they "
        "stand as code points in the PNG. Name the output .svg or .html, which the browser draws "
        "with its own fonts, or install one, such as Noto Sans CJK (apt install fonts-noto-cjk)."
    )


def draw_attention(
    maps: Tensor, tokens: Sequence[str], layers: Sequence[int], heads: Sequence[int]
) -> Figure:
    """Draw attention maps side by side: a row for each layer, a column for each head.

    Args:
        maps: `[len(layers), len(heads), T, T]`, rows summing to 1; white is 0, dark is 1.
        tokens: the T labels.
        layers: numbers of the layers, for the titles.
        heads: numbers of the heads, for the titles.
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
            axes.imshow(maps[row, column].numpy(), vmin=0, vmax=1, **_CELLS)
            title = axes.set_title("", fontsize=10 if alone else 6, pad=2)
            write_words(title, f"layer {layer}, head {head}")
            # All maps have the same tokens: labels stand only at the outer edges.
            axes.set_xticks([])
            axes.set_yticks([])
            if row == len(layers) - 1:
                label_ticks(axes.xaxis, tokens, shown, fontsize=points, rotation=90)
            if column == 0:
                label_ticks(axes.yaxis, tokens, shown, fontsize=points)
            axes.tick_params(length=0, pad=1)
    return figure


def attention_chart(explained: Explained) -> Figure:
    """Draw a map for each layer of an explained example, the mean over its heads."""
    assert explained.attention is not None  # noqa: S101 - asked for only where there is one
    maps = explained.attention.numpy()
    texts = [visible(text) for text in explained.texts]
    labels = [cut_label(text) for text in readable(texts)]
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
        axes.imshow(weights, vmin=0, vmax=1, **_CELLS)
        write_words(axes.set_title("", fontsize=8), f"layer {layer}")
        label_ticks(axes.xaxis, texts, labels, fontsize=points, rotation=90)
        label_ticks(axes.yaxis, texts, labels, fontsize=points)
        axes.tick_params(length=0)
    # The last row of panels may be longer than the row of maps.
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    return figure
