"""Text in a model card stays text, whatever is in it."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.render.escaping import fenced, for_markdown, one_line
from pretune.render.grid import Grid


@given(st.text(max_size=80))
def test_a_browser_shows_the_text_itself(text: str) -> None:
    assert html.unescape(for_markdown(text)) == one_line(text)


@given(st.text(max_size=80))
def test_nothing_that_means_something_is_left(text: str) -> None:
    left = re.sub(r"&#\d+;", "", for_markdown(text))
    assert not re.search(r"[&<>|`*_\[\]\\~#$!\r\n]", left)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_every_row_of_a_table_has_as_many_cells(cells: list[str]) -> None:
    lines = Grid(["x"] * len(cells), [cells, cells]).markdown().split("\n")
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(cells) + 1}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("films", "films"),
        ("好电影", "好电影"),
        ("a | b", "a &#124; b"),
        ("<b>", "&#60;b&#62;"),
        ("a\nb\tc", "a b c"),
        ("0.5", "0.5"),
        ("https://x.org", "https&#58;//x.org"),
        ("a\u202eb", "ab"),
        ("👩‍💻", "👩‍💻"),
        ("x" * 500, "x" * 199 + "…"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert for_markdown(text) == shown


@given(st.text(alphabet="`\na", max_size=30))
def test_no_text_ends_its_block_of_code(text: str) -> None:
    lines = fenced(text, "yaml").split("\n")
    fence = lines[-1]
    assert lines[0] == f"{fence}yaml"
    assert not any(line.strip().startswith(fence) for line in lines[1:-1])
