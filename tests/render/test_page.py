from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

from pretune.render.charts import bar_chart
from pretune.render.grid import Grid
from pretune.render.page import Folded, PageSection, Paragraph, Picture, page

NASTY = "<script>alert('x')</script> & \"quoted\" \x00\ud83d <img src=http://a/b onerror=x>"


class Reader(HTMLParser):
    """The tags with their attributes, and the text, as a browser would take them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def everything(text: str) -> str:
    parts = [
        Paragraph(text),
        Paragraph(text, "pre"),
        Grid([text, "n"], [[text, 3]], caption=text, numbers=[1]),
        Picture(bar_chart([text, "b"], {text: [1, 2], "c": [2, 1]}, "n"), alt=text, caption=text),
        Folded(text, Paragraph("p")),
    ]
    return page(text, [PageSection(text, parts), PageSection("b", [])])


def test_text_of_the_data_stays_text() -> None:
    nasty, harmless = Reader(everything(NASTY)), Reader(everything("harmless"))
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in harmless.tags]
    shown = NASTY.replace("\x00", "\ufffd").replace("\ud83d", "\ufffd")
    # Title, heading, link, section, paragraph, code, caption, header, cell, caption of the picture,
    # summary.
    assert nasty.text.count(shown) == 11
    everything(NASTY).encode("utf-8")


def test_it_needs_nothing_else() -> None:
    text = everything("a")
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    (source,) = (attrs["src"] for tag, attrs in Reader(text).tags if tag == "img")
    kind, _, data = str(source).partition(",")
    assert kind == "data:image/svg+xml;base64"
    picture = base64.b64decode(data).decode("utf-8")
    assert re.findall(r'(?:href|src)="(?!#|data:)', picture) == []


def test_a_section_is_linked_from_the_top() -> None:
    tags = Reader(everything("a")).tags
    links = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert links == [f"#{attrs['id']}" for tag, attrs in tags if tag == "section"]


def test_numbers_stand_to_the_right_and_short_texts_on_a_line() -> None:
    tags = Reader(page("t", [PageSection("s", [Grid(["a", "n"], [["x", 1]], numbers=[1])])])).tags
    assert [a.get("class") for tag, a in tags if tag == "td"] == ["short", "number"]
