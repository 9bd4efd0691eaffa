"""One HTML file that needs nothing else: no network, no script but its own, pictures inside."""

from __future__ import annotations

import base64
import hashlib
import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pretune.render.svg import figure_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a browser is told as well: load nothing, run nothing (but what `page` names), send nothing.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
#: A cell of so many characters stays on one line.
SHORT = 24
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #fff; --line: #d8dde3;
  --strong: #8a94a0; --soft: #f4f6f8; --faint: #4a5561; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ed; --back: #16191d; --line: #363d45;
  --strong: #6b7682; --soft: #22272d; --faint: #a4afba; --link: #7ab8ff; } }
body { font: 15px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC",
  "Microsoft YaHei", sans-serif; color: var(--text); background: var(--back);
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin-top: 2.2rem; overflow-wrap: anywhere; }
a { color: var(--link); }
nav a { margin-right: 1rem; display: inline-block; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; min-width: 1rem; }
.short { white-space: nowrap; }
thead th { border-bottom: 2px solid var(--strong); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; padding: .3rem;
  box-sizing: border-box; }
summary { cursor: pointer; color: var(--link); }
figure { margin: 1rem 0; } figcaption { color: var(--faint); font-size: .9rem; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; }
.tools > * { margin-right: .8rem; }
.tokens { line-height: 1.9; } .tokens span { padding: .1rem .2rem; border-radius: .2rem; }
.long { min-width: 16rem; }
.long bdi { display: block; max-height: 9rem; overflow: auto; white-space: pre-wrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; white-space: nowrap; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
@media print { body { max-width: none; } h2 { break-after: avoid; } }
"""


@dataclass(frozen=True)
class Paragraph:
    """Some sentences."""

    text: str

    def html(self) -> str:
        """As HTML, escaped."""
        return f"<p>{escaped(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """Text whose lines and spaces count."""

    text: str

    def html(self) -> str:
        """As HTML, escaped."""
        return f"<pre>{escaped(self.text)}</pre>"


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        header: names of the columns.
        rows: as many cells each.
        caption: above it.
        numbers: which columns (0-based) are numbers, set to the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    numbers: Sequence[int] = ()

    def html(self) -> str:
        """As HTML, escaped."""
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        head = "".join(
            f'<th scope="col"{self._kind(i)}>{escaped(name)}</th>'
            for i, name in enumerate(self.header)
        )
        body = "\n".join(
            "<tr>"
            + "".join(
                f"<td{self._kind(i, cell)}><bdi>{escaped(cell)}</bdi></td>"
                for i, cell in enumerate(row)
            )
            + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="table"><table>{caption}\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody></table></div>"
        )

    def _kind(self, column: int, cell: object = "") -> str:
        if column in self.numbers:
            return ' class="number"'
        return "" if len(str(cell)) > SHORT else ' class="short"'


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        figure: what is drawn.
        alt: what it shows, for who cannot see it.
        caption: below it.
        name: of its file, where it is written as one.
    """

    figure: Figure
    alt: str
    caption: str = ""
    name: str = ""

    def html(self) -> str:
        """As HTML, the picture inside: an image of its own, so that nothing in it can run."""
        data = base64.b64encode(figure_svg(self.figure).encode("utf-8")).decode("ascii")
        caption = f"<figcaption>{escaped(self.caption)}</figcaption>" if self.caption else ""
        source = f"data:image/svg+xml;base64,{data}"
        return f'<figure><img src="{source}" alt="{escaped(self.alt)}">{caption}</figure>'


class Part(Protocol):
    """Something that stands in a section."""

    def html(self) -> str:
        """As HTML, escaped."""


@dataclass(frozen=True)
class Folded:
    """A part that is seen after a click."""

    summary: str
    part: Part

    def html(self) -> str:
        """As HTML, escaped."""
        return f"<details><summary>{escaped(self.summary)}</summary>{self.part.html()}</details>"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    parts: Sequence[Part]


def page(title: str, sections: Sequence[Section], script: str = "") -> str:
    """A whole HTML page: safe to open whatever the data has in it.

    Args:
        title: of the page.
        sections: in order; a page of several begins with links to them.
        script: the only one that may run, at the end of the page; of ours, never from the data.
    """
    policy, ending = _POLICY, ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy = f"{_POLICY}; script-src 'sha256-{digest}'"
        ending = f"<script>{script}</script>\n"
    links = "".join(f'<a href="#s{i}">{escaped(s.heading)}</a>' for i, s in enumerate(sections))
    contents = f"<nav>{links}</nav>\n" if len(sections) > 1 else ""
    body = "\n".join(
        f'<section id="s{i}"><h2>{escaped(section.heading)}</h2>\n'
        + "\n".join(part.html() for part in section.parts)
        + "\n</section>"
        for i, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escaped(title)}</h1>\n{contents}{body}\n{ending}</body>\n</html>\n"
    )


def escaped(text: object) -> str:
    """A text as HTML shows it; characters that HTML must not have become U+FFFD."""
    return html.escape("".join(map(_allowed, str(text))), quote=True)


def _allowed(character: str) -> str:
    if character in "\n\t":
        return character
    # Control characters and halves of pairs cannot be written in HTML at all (HTML, 13.2.3.5).
    return "\ufffd" if unicodedata.category(character) in {"Cc", "Cs"} else character
