"""Text in a model card stays text, whatever is in it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.render.escaping import fenced, for_html, for_markdown, one_line
from pretune.render.grid import Grid
from pretune.text.terminal import for_terminal


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


class _Reader(HTMLParser):
    """What a browser makes of a page: its tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(max_size=40) | st.text(alphabet="<>&\"'/= a;\x1b", max_size=40))
def test_a_page_shows_the_text_itself_wherever_it_stands(text: str) -> None:
    shown = for_html(text)
    page = _Reader(f"<p title=\"{shown}\" lang='{shown}'>{shown}</p>")
    assert page.tags == [("p", [("title", for_terminal(text)), ("lang", for_terminal(text))])]
    assert page.text == for_terminal(text)


@given(st.text(alphabet="`\na", max_size=30))
def test_no_text_ends_its_block_of_code(text: str) -> None:
    lines = fenced(text, "yaml").split("\n")
    fence = lines[-1]
    assert lines[0] == f"{fence}yaml"
    assert not any(line.strip().startswith(fence) for line in lines[1:-1])
