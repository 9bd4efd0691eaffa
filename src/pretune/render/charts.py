"""What all pictures share: figures without a screen, fonts for every script, bars and boxes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pretune.checkpoints.atomic_io import atomic_file, make_folder
from pretune.errors import RunError
from pretune.render.markdown import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

S = TypeVar("S")

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
    "Noto Serif CJK SC",
    "Source Han Sans CN",
    "Source Han Serif SC",
    "Heiti SC",
    "STHeiti",
    "Songti SC",
    "SimSun",
    "AR PL UMing CN",
    "Noto Sans CJK KR",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Unifont",
)
OWN_FONT = "DejaVu Sans"
DPI = 150
#: In the gid of a text of a figure: the label that it stands for, which no font here can draw.
STANDS_FOR = "label:"
#: Longer labels push the chart itself aside.
LONGEST_LABEL = 24
#: Of charts, in inches: as wide as a page, and so much for each label and each bar at it.
WIDTH, LABEL_HEIGHT, BAR_HEIGHT, MARGINS = 7.0, 0.12, 0.2, 0.8
#: Distinct also without colours, by their lightness (of Okabe and Ito's palette).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


@dataclass(frozen=True)
class Box:
    """One box of `box_chart`: the middle half of some values, and how far the others go."""

    low: float
    first_quartile: float
    median: float
    third_quartile: float
    high: float


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, drawn without a screen whatever MPLBACKEND says."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure) -> bytes:
    """The bytes of a PNG of a figure."""
    held = io.BytesIO()
    figure.savefig(held, format="png")
    return held.getvalue()


def write_png(figure: Figure, path: Path, option: str = "--output") -> None:
    """Write a picture; it is there only when all of it is on the disk.

    Args:
        figure: to write.
        path: the PNG.
        option: of the command line, that says where.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        with atomic_file(path) as aside:
            figure.savefig(aside, format="png")
    except OSError as error:
        raise not_writable(path, option, error) from None


def write_pngs(figures: Mapping[str, Figure], folder: Path, option: str = "--png") -> list[Path]:
    """Write pictures into a folder, which is made: each as `NAME.png`.

    Raises:
        RunError: one cannot be written.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise not_writable(folder, option, error) from None
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        write_png(figure, path, option)
    return paths


def not_writable(path: Path, option: str, error: OSError) -> RunError:
    """What to say of a file that cannot be written, where that option says."""
    return RunError(
        f"{path}: cannot be written ({error.strerror or error})", f"Choose another {option}."
    )


@lru_cache(maxsize=1)
def font_families() -> list[str]:
    """The font of matplotlib, then those of `FALLBACK_FONTS` that this machine has."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return [OWN_FONT, *(name for name in FALLBACK_FONTS if name in there)]


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known: set[int] = set()
    for family in font_families():
        known.update(get_font(findfont(FontProperties(family=family))).get_charmap())
    return frozenset(known)


def can_draw(text: str) -> bool:
    """Whether the fonts of this machine have all characters of a text."""
    return all(ord(character) in _drawable() for character in text)


def readable(tokens: Sequence[str]) -> list[str]:
    """The tokens; a character that no font here can draw becomes its number, e.g. `U+597D`."""
    drawable = _drawable()
    return ["".join(c if ord(c) in drawable else f"U+{ord(c):04X}" for c in t) for t in tokens]


def chart_labels(labels: Sequence[str]) -> list[str]:
    """Labels as a chart can show them: on one line and cut; `#3` for a third that has no glyphs.

    A row of code points would be as unreadable as empty boxes: whoever shows the chart has the
    labels in a table beside it, in the same order (see `undrawable`).
    """
    lines = map(cut_label, labels)
    return [line if can_draw(line) else f"#{n}" for n, line in enumerate(lines, start=1)]


def cut_label(label: str) -> str:
    """A label on one line, and cut."""
    line = one_line(label)
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…"


def stand_for(text: Text, label: str) -> None:
    """Remember what a text of a figure stands for: a browser may have fonts that are not here."""
    text.set_parse_math(False)  # a label may be "$"
    if text.get_text() != cut_label(label):
        text.set_gid(STANDS_FOR + cut_label(label))


def label_ticks(axis: Axis, labels: Sequence[str], shown: Sequence[str], **style: Any) -> None:
    """Put labels at 0, 1, 2, ... of an axis.

    Args:
        axis: of some axes.
        labels: what is meant.
        shown: what this machine can draw of it, by `chart_labels` or `readable`.
        style: of the texts.
    """
    axis.set_ticks(range(len(labels)), shown, family=font_families(), **style)
    for text, label in zip(axis.get_ticklabels(), labels, strict=True):
        stand_for(text, label)


def undrawable(labels: Sequence[str]) -> str | None:
    """What to tell people about labels that became numbers in a chart; None where none did."""
    if all(can_draw(one_line(label)) for label in labels):
        return None
    return (
        "No font on this machine has all characters of these labels: in the PNG charts, #1 is the "
        "first row of the table. Install one to see them there, such as Noto Sans CJK (apt install "
        "fonts-noto-cjk). Charts in a page are drawn with the fonts of the browser."
    )


def bar_chart(labels: Sequence[str], series: Mapping[str, Sequence[float]], axis: str) -> Figure:
    """Lying bars, first label on top; several series side by side, with a legend.

    Args:
        labels: one for each bar of a series.
        series: values by the name of the series.
        axis: what the values are.
    """

    def draw(axes: Axes, lie: _Place, values: Sequence[float]) -> None:
        bars = axes.barh(lie.middles, values, lie.thickness, color=lie.colour)
        axes.bar_label(bars, [f"{value:,.4g}" for value in values], padding=3, fontsize=8)
        axes.margins(x=0.12)

    return _chart(labels, series, axis, draw)


def box_chart(labels: Sequence[str], series: Mapping[str, Sequence[Box]], axis: str) -> Figure:
    """Lying boxes, first label on top: quartiles, the median as a line, and the whole range.

    Args:
        labels: one for each box of a series.
        series: boxes by the name of the series.
        axis: what the values are.
    """

    def draw(axes: Axes, lie: _Place, boxes: Sequence[Box]) -> None:
        stats = [
            {
                "whislo": box.low,
                "q1": box.first_quartile,
                "med": box.median,
                "q3": box.third_quartile,
                "whishi": box.high,
            }
            for box in boxes
        ]
        axes.bxp(
            stats,
            positions=lie.middles,
            widths=0.8 * lie.thickness,
            orientation="horizontal",
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": lie.colour, "alpha": 0.6},
            medianprops={"color": "black"},
        )

    return _chart(labels, series, axis, draw)


@dataclass(frozen=True)
class _Place:
    """Where a series lies at the labels, and how thick and in which colour."""

    middles: list[float]
    thickness: float
    colour: str


def _chart(
    labels: Sequence[str],
    series: Mapping[str, Sequence[S]],
    axis: str,
    draw: Callable[[Axes, _Place, Sequence[S]], None],
) -> Figure:
    """Several series side by side, each drawn by `draw`."""
    count = len(series)
    height = len(labels) * (LABEL_HEIGHT + BAR_HEIGHT * count) + MARGINS
    figure = new_figure(WIDTH, height)
    axes = figure.subplots()
    thickness = 0.8 / count
    for i, values in enumerate(series.values()):
        middles = [row + (i - (count - 1) / 2) * thickness for row in range(len(labels))]
        draw(axes, _Place(middles, thickness, COLOURS[i % len(COLOURS)]), values)
    axes.set_xlim(left=0)
    _finish(axes, labels, axis)
    if count > 1:
        _legend(axes, list(series))
    return figure


def _finish(axes: Axes, labels: Sequence[str], axis: str) -> None:
    label_ticks(axes.yaxis, labels, chart_labels(labels))
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first on top
    axes.set_xlabel(axis)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _legend(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

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
