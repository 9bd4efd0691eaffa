"""Figures as SVG whose text is text: the browser draws it, with its own fonts for every script."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from pretune.render.charts import DPI, STANDS_FOR, can_draw

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
#: What matplotlib measured with comes first; where that is missing, what the browser has.
_STYLE = (
    'text { font-family: "DejaVu Sans", Verdana, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", '
    '"Microsoft YaHei", system-ui, sans-serif !important; }'
)
#: Points around a figure.
EDGE = 5
#: As wide as a Chinese character in `charts.OWN_FONT`: one em.
_WIDE, _NARROW = "—", "x"


def figure_svg(figure: Figure) -> str:
    """A figure as SVG, with the labels that no font of this machine can draw (see `stand_for`)."""
    from matplotlib import rc_context

    held = io.BytesIO()
    with _room_for_labels(figure), rc_context({"svg.fonttype": "none", "svg.hashsalt": "pretune"}):
        figure.savefig(held, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(held.getvalue())  # noqa: S314 - made here
    for group in root.iter(f"{{{_SVG}}}g"):
        label = group.get("id", "")
        if label.startswith(STANDS_FOR):
            del group.attrib["id"]
            for text in group.iter(f"{{{_SVG}}}text"):
                text.text = label.removeprefix(STANDS_FOR)
    # Letters of a browser may be a little wider than those that were measured.
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
    """While it lasts, signs that can be drawn hold the room that the labels will take."""
    from matplotlib.text import Text

    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    ticks = [(axis, [t.get_text() for t in axis.get_ticklabels()]) for axis in axes if _any(axis)]
    others = [(text, text.get_text()) for text in figure.findobj(Text) if _label(text)]
    for axis, _ in ticks:
        axis.set_ticklabels([_as_wide(text) for text in axis.get_ticklabels()])
    for text, _ in others:
        text.set_text(_as_wide(text))
    try:
        yield
    finally:
        for axis, before in ticks:
            axis.set_ticklabels(before)
        for text, shown in others:
            text.set_text(shown)


def _label(text: Text) -> str | None:
    """What a text stands for, if it stands for something."""
    gid = text.get_gid() or ""
    return gid.removeprefix(STANDS_FOR) if gid.startswith(STANDS_FOR) else None


def _any(axis: Axis) -> bool:
    return any(_label(text) for text in axis.get_ticklabels())


def _as_wide(text: Text) -> str:
    label = _label(text)
    if label is None:
        return text.get_text()
    return "".join(c if can_draw(c) else _placeholder(c) for c in label)


def _placeholder(character: str) -> str:
    return _WIDE if unicodedata.east_asian_width(character) in "WF" else _NARROW
