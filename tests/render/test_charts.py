from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from matplotlib.patches import PathPatch, Rectangle

from pretune.render import charts
from pretune.render.charts import (
    Box,
    bar_chart,
    box_chart,
    chart_labels,
    figure_png,
    readable,
    undrawable,
)


@pytest.fixture
def latin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_drawable", lambda: frozenset(range(0x20, 0x7F)))


@pytest.fixture(autouse=True)
def no_missing_glyphs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that it draws as a box
        yield


@pytest.mark.usefixtures("latin_only")
def test_characters_without_a_glyph_get_their_number() -> None:
    assert readable(["ab", "##好"]) == ["ab", "##U+597D"]


@pytest.mark.usefixtures("latin_only")
def test_labels_without_glyphs_become_the_rows_of_the_table() -> None:
    assert chart_labels(["joy", "体育", "a b", "财经"]) == ["joy", "#2", "a b", "#4"]
    assert "#1 is the first row" in str(undrawable(["joy", "体育"]))
    assert undrawable(["joy"]) is None


def test_labels_are_on_one_line_and_cut() -> None:
    assert chart_labels(["two\nlines", "x" * 99]) == ["two lines", "x" * 23 + "…"]


def test_bars_are_as_long_as_their_values() -> None:
    figure = bar_chart(["a", "b"], {"train": [3, 1], "dev": [2, 5]}, "rows")
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [3, 1, 2, 5]
    # a stands above b, and train above dev: the axis points down.
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    assert middles[0] < middles[2] < middles[1] < middles[3]
    bottom, top = figure.axes[0].get_ylim()
    assert top < middles[0]
    assert middles[3] < bottom


def test_boxes_stand_at_their_quartiles() -> None:
    figure = box_chart(["a"], {"train": [Box(1, 2, 3, 5, 9)]}, "tokens")
    (box,) = (patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch))
    assert (box.get_path().vertices[:, 0].min(), box.get_path().vertices[:, 0].max()) == (2, 5)


@pytest.mark.parametrize("label", ["$", "$x^$", "\\frac", "好", "😀", "\u200b", "_a", "%", ""])
def test_labels_of_every_kind(label: str) -> None:
    assert figure_png(bar_chart([label], {label: [1], "b": [2]}, "rows")).startswith(b"\x89PNG")
