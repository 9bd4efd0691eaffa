"""Figures as SVG whose text stays text: the browser draws it, with its fonts for every script."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pretune.render.charts import DPI, STANDS_FOR, can_draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
#: The font that matplotlib measured with comes first, then what browsers usually have.
_STYLE = (
    'text { font-family: "DejaVu Sans", Verdana, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", '
    '"Microsoft YaHei", system-ui, sans-serif !important; }'
)
#: Empty points around a figure: a browser's letters may be wider than the measured ones.
EDGE = 5
#: Placeholders for characters that no font has: as wide as a Chinese one (an em), and narrower.
_WIDE, _NARROW = "—", "x"


def figure_svg(figure: Figure) -> str:
    """Draw a figure as SVG, with the labels that no installed font can draw (see `stand_for`)."""
    from matplotlib import rc_context

    # Fixed ids and no date: the same figure gives the same file.
    buffer = io.BytesIO()
    with _room_for_labels(figure), rc_context({"svg.fonttype": "none", "svg.hashsalt": "pretune"}):
        figure.savefig(buffer, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - made here
    # Put each label in the place of what was drawn for it.
    for group in root.iter(f"{{{_SVG}}}g"):
        label = group.get("id", "")
        if label.startswith(STANDS_FOR):
            del group.attrib["id"]
            for text in group.iter(f"{{{_SVG}}}text"):
                text.text = label.removeprefix(STANDS_FOR)
    # Matplotlib's inches become points, 72 an inch.
    width, height = (72 * float(inches) for inches in figure.get_size_inches())
    root.set("viewBox", f"{-EDGE} {-EDGE} {width + 2 * EDGE:g} {height + 2 * EDGE:g}")
    root.set("width", f"{width + 2 * EDGE:g}pt")
    root.set("height", f"{height + 2 * EDGE:g}pt")
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    style = ElementTree.Element(f"{{{_SVG}}}style")
    style.text = _STYLE
    root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode")


@contextmanager
def _room_for_labels(figure: Figure) -> Iterator[None]:
    """Lay the figure out with placeholders as wide as the labels that no font can draw."""
    from matplotlib.text import Text

    # Tick labels are set by axis, other texts by themselves.
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    ticks = [
        (axis, [text.get_text() for text in axis.get_ticklabels()])
        for axis in axes
        if any(map(_label, axis.get_ticklabels()))
    ]
    others = [(text, text.get_text()) for text in figure.findobj(Text) if _label(text)]
    for axis, _ in ticks:
        axis.set_ticklabels([_placeholder(text) for text in axis.get_ticklabels()])
    for text, _ in others:
        text.set_text(_placeholder(text))
    try:
        yield
    finally:
        for axis, before in ticks:
            axis.set_ticklabels(before)
        for text, shown in others:
            text.set_text(shown)


def _label(text: Text) -> str | None:
    """Return the label that a text stands for, if it stands for any."""
    gid = text.get_gid() or ""
    return gid.removeprefix(STANDS_FOR) if gid.startswith(STANDS_FOR) else None


def _placeholder(text: Text) -> str:
    """Replace the missing characters of the label that a text stands for by others as wide."""
    label = _label(text)
    if label is None:
        return text.get_text()
    return "".join(
        c if can_draw(c) else _WIDE if unicodedata.east_asian_width(c) in "WF" else _NARROW
        for c in label
    )
