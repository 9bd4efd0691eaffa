"""Figures drawn without a screen, with fonts for every script; bar charts and box charts."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pretune.checkpoints.atomic_io import atomic_file, make_folder
from pretune.errors import not_writable
from pretune.render.escaping import one_line, shortened
from pretune.text.spoken_language import tr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

S = TypeVar("S")

#: Fonts for the scripts that matplotlib's own font lacks (Chinese, Japanese, Korean).
FALLBACK_FONTS = [
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS", "Noto Serif CJK SC",
    "Source Han Sans CN", "Source Han Serif SC", "Heiti SC", "STHeiti", "Songti SC", "SimSun",
    "AR PL UMing CN", "Noto Sans CJK KR", "Malgun Gothic", "Apple SD Gothic Neo", "Unifont",
]  # fmt: skip
OWN_FONT = "DejaVu Sans"
DPI = 150
#: Prefix of the gid of a text in a figure; the rest is the label that no font here can draw.
STANDS_FOR = "label:"
#: Characters of a label; a longer one would push the chart itself aside.
LONGEST_LABEL = 24
#: Inches: the width of a chart, the height of a label, of each bar beside it, and of the margins.
WIDTH, LABEL_HEIGHT, BAR_HEIGHT, MARGINS = 7.0, 0.12, 0.2, 0.8
#: Colours of Okabe and Ito's palette whose lightness tells them apart in black and white too.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


class Box(NamedTuple):
    """A box of `box_chart`: the quartiles of some values, and the range that its whiskers span."""

    low: float
    first_quartile: float
    median: float
    third_quartile: float
    high: float


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, sized in inches, that needs no screen, whatever MPLBACKEND is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure) -> bytes:
    """Draw a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_png(figure: Figure, path: Path, option: str = "--output") -> None:
    """Write a figure as a PNG file, all of it or nothing; raises RunError on failure."""
    try:
        with atomic_file(path) as aside:
            figure.savefig(aside, format="png")
    except OSError as error:
        raise not_writable(path, option, error) from None


def write_pngs(figures: Mapping[str, Figure], folder: Path, option: str = "--png") -> list[Path]:
    """Write figures as `NAME.png` into a folder, made if need be; raises RunError on failure."""
    try:
        make_folder(folder)
    except OSError as error:
        raise not_writable(folder, option, error) from None
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        write_png(figure, path, option)
    return paths


@lru_cache(maxsize=1)
def font_families() -> list[str]:
    """List matplotlib's own font, then the installed fonts of `FALLBACK_FONTS`."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [OWN_FONT, *(name for name in FALLBACK_FONTS if name in installed)]


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known: set[int] = set()
    for family in font_families():
        known.update(get_font(findfont(FontProperties(family=family))).get_charmap())
    return frozenset(known)


def can_draw(text: str) -> bool:
    """Tell whether the installed fonts have all characters of a text."""
    return all(ord(character) in _drawable() for character in text)


def readable(tokens: Sequence[str]) -> list[str]:
    """Replace characters that no installed font has by their code points, such as `U+597D`."""
    drawable = _drawable()
    return ["".join(c if ord(c) in drawable else f"U+{ord(c):04X}" for c in t) for t in tokens]


def chart_labels(labels: Sequence[str]) -> list[str]:
    """Shorten labels for a chart; a third label that no installed font can draw becomes `#3`.

    A row of code points would be as unreadable as empty boxes. A table beside the chart holds the
    labels in the same order (see `undrawable`).
    """
    lines = map(cut_label, labels)
    return [line if can_draw(line) else f"#{n}" for n, line in enumerate(lines, start=1)]


def cut_label(label: str) -> str:
    """Put a label on one line and shorten it."""
    return shortened(one_line(label), LONGEST_LABEL)


def stand_for(text: Text, label: str) -> None:
    """Store with a text the label that it stands for: a browser may have the fonts for it."""
    text.set_parse_math(False)  # a label may be "$"
    if text.get_text() != cut_label(label):
        text.set_gid(STANDS_FOR + cut_label(label))


def write_words(text: Text, words: str) -> None:
    """Put words of ours into a text of a figure, in the language that is spoken.

    Where no installed font has its characters, a PNG has them in English; a page has the
    translation, which the browser draws.
    """
    text.set_text(words)
    told = tr(words)
    if told == words:
        return
    if can_draw(told):
        text.set(text=told, family=font_families())
    else:
        text.set_gid(STANDS_FOR + told)


def label_ticks(axis: Axis, labels: Sequence[str], shown: Sequence[str], **style: Any) -> None:
    """Put labels at 0, 1, 2, ... of an axis; `shown` is what the installed fonts can draw."""
    axis.set_ticks(range(len(labels)), shown, family=font_families(), **style)
    for text, label in zip(axis.get_ticklabels(), labels, strict=True):
        stand_for(text, label)


def undrawable(labels: Sequence[str]) -> str | None:
    """Explain that labels became numbers in a chart; None if none did."""
    if all(can_draw(one_line(label)) for label in labels):
        return None
    return (
        "No font on this machine has all characters of these labels: in the PNG charts, #1 is the "
        "first row of the table. Install one to see them there, such as Noto Sans CJK (apt install "
        "fonts-noto-cjk). Charts in a page are drawn with the fonts of the browser."
    )


def bar_chart(labels: Sequence[str], series: Mapping[str, Sequence[float]], axis: str) -> Figure:
    """Draw horizontal bars, the first label on top; several series get a legend."""

    def draw(axes: Axes, place: _Place, values: Sequence[float]) -> None:
        bars = axes.barh(place.middles, values, place.thickness, color=place.colour)
        axes.bar_label(bars, [f"{value:,.4g}" for value in values], padding=3, fontsize=8)
        axes.margins(x=0.12)

    return _chart(labels, series, axis, draw)


def box_chart(labels: Sequence[str], series: Mapping[str, Sequence[Box]], axis: str) -> Figure:
    """Draw horizontal boxes, the first label on top: quartiles, the median as a line, whiskers."""

    def draw(axes: Axes, place: _Place, boxes: Sequence[Box]) -> None:
        # The statistics that matplotlib would compute itself from raw values.
        names = ("whislo", "q1", "med", "q3", "whishi")
        stats = [dict(zip(names, box, strict=True)) for box in boxes]
        axes.bxp(
            stats,
            positions=place.middles,
            widths=0.8 * place.thickness,
            orientation="horizontal",
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": place.colour, "alpha": 0.6},
            medianprops={"color": "black"},
        )

    return _chart(labels, series, axis, draw)


class _Place(NamedTuple):
    """Where the bars of a series lie beside the labels, their thickness and their colour."""

    middles: list[float]
    thickness: float
    colour: str


def _chart(
    labels: Sequence[str],
    series: Mapping[str, Sequence[S]],
    axis: str,
    draw: Callable[[Axes, _Place, Sequence[S]], None],
) -> Figure:
    """Make a figure and let `draw` draw each series into it, beside the others at each label."""
    count = len(series)
    height = len(labels) * (LABEL_HEIGHT + BAR_HEIGHT * count) + MARGINS
    figure = new_figure(WIDTH, height)
    axes = figure.subplots()
    thickness = 0.8 / count
    for i, values in enumerate(series.values()):
        middles = [row + (i - (count - 1) / 2) * thickness for row in range(len(labels))]
        draw(axes, _Place(middles, thickness, COLOURS[i % len(COLOURS)]), values)
    axes.set_xlim(left=0)
    label_ticks(axes.yaxis, labels, chart_labels(labels))
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first label on top
    write_words(axes.xaxis.label, axis)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    if count > 1:
        _legend(axes, list(series))
    return figure


def _legend(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    # Patches rather than the bars themselves: a series may have no bar at all.
    patches = [Patch(color=COLOURS[i % len(COLOURS)]) for i in range(len(names))]
    legend = axes.figure.legend(
        patches,
        chart_labels(names),
        loc="outside upper right",
        ncols=min(len(names), 4),
        prop={"family": font_families(), "size": 8},
        frameon=False,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        stand_for(text, name)
