from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pretune.render import charts
from pretune.render.charts import bar_chart, cut_label, figure_png, stand_for
from pretune.render.svg import figure_svg

SVG = "{http://www.w3.org/2000/svg}"


def texts(figure: Figure) -> list[str]:
    root = ElementTree.fromstring(figure_svg(figure))  # noqa: S314 - made here
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


@pytest.fixture
def latin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_drawable", lambda: frozenset(range(0x20, 0x7F)))


@pytest.mark.usefixtures("latin_only")
def test_labels_that_no_font_has_are_there_as_text() -> None:
    figure = bar_chart(["体育", "joy", "<b>&\"'"], {"训练": [1, 2, 3], "dev": [3, 2, 1]}, "rows")
    before = figure_png(figure)
    found = texts(figure)
    assert {"体育", "joy", "<b>&\"'", "训练", "dev", "rows"} <= {*found}
    assert not [text for text in found if text.startswith("#")]
    assert "#1" in [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert figure_png(figure) == before  # what was changed for the browser was put back


@pytest.mark.usefixtures("latin_only")
def test_there_is_room_for_them() -> None:
    def left(labels: list[str]) -> float:
        figure = bar_chart(labels, {"": [1.0]}, "rows")
        root = ElementTree.fromstring(figure_svg(figure))  # noqa: S314 - made here
        ends = [t for t in root.iter(f"{SVG}text") if "end" in (t.get("style") or "")]
        return float(ends[0].get("x") or 0)

    # A Chinese character is an em wide: 10 points.
    assert left(["体育新闻财经金融"]) - left(["体育"]) == pytest.approx(60, abs=2)


@settings(max_examples=10)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_label_is_well_formed(one: str, two: str) -> None:
    figure = Figure()
    for label in (one, two):
        stand_for(figure.text(0, 0, "#1"), label)
    assert texts(figure) == [cut_label(one), cut_label(two)]
