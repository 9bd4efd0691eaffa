from __future__ import annotations

import base64
from html.parser import HTMLParser

from pretune.report.page import Code, Grid, Paragraph, Picture, Section, page

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
        Code(text),
        Grid([text, "n"], [[text, 3]], caption=text, numbers=[1]),
        Picture(b"png", alt=text, caption=text),
    ]
    return page(text, [Section(text, parts), Section("b", [])])


def test_text_of_the_data_stays_text() -> None:
    nasty, harmless = Reader(everything(NASTY)), Reader(everything("harmless"))
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in harmless.tags]
    shown = NASTY.replace("\x00", "\ufffd").replace("\ud83d", "\ufffd")
    # Title, heading, link, section, paragraph, code, caption, header, cell, caption of the picture.
    assert nasty.text.count(shown) == 10
    everything(NASTY).encode("utf-8")


def test_it_needs_nothing_else() -> None:
    text = everything("a")
    assert "http:" not in text
    assert "https:" not in text
    assert "<script" not in text
    sources = [attrs["src"] for tag, attrs in Reader(text).tags if tag == "img"]
    assert sources == ["data:image/png;base64," + base64.b64encode(b"png").decode()]


def test_a_section_is_linked_from_the_top() -> None:
    tags = Reader(everything("a")).tags
    links = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert links == [f"#{attrs['id']}" for tag, attrs in tags if tag == "section"]


def test_numbers_stand_to_the_right() -> None:
    tags = Reader(page("t", [Section("s", [Grid(["a", "n"], [["x", 1]], numbers=[1])])])).tags
    assert [a.get("class") for tag, a in tags if tag == "td"] == [None, "number"]
