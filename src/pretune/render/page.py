"""Build one HTML file that needs nothing else: no network, pictures inside, one script at most."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from pretune.render.escaping import for_html
from pretune.render.svg import figure_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Content security policy: the browser loads and sends nothing, and runs only what `page` adds.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
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


class PagePart(Protocol):
    """Anything that can stand in a section of a page, such as a `Grid`."""

    def html(self) -> str:
        """Write the part as HTML, with all text from data escaped."""


@dataclass(frozen=True)
class Paragraph(PagePart):
    """A paragraph of plain text."""

    text: str

    @override
    def html(self) -> str:
        return f"<p>{for_html(self.text)}</p>"


@dataclass(frozen=True)
class Code(PagePart):
    """Preformatted text, whose lines and spaces are kept."""

    text: str

    @override
    def html(self) -> str:
        return f"<pre>{for_html(self.text)}</pre>"


@dataclass(frozen=True)
class Picture(PagePart):
    """A chart.

    Attributes:
        figure: the chart itself.
        alt: a description for those who cannot see it.
        caption: text below it.
        name: stem of the file name where it is written as a file.
    """

    figure: Figure
    alt: str
    caption: str = ""
    name: str = ""

    @override
    def html(self) -> str:
        # An image rather than inline SVG, so that nothing in it can run.
        data = base64.b64encode(figure_svg(self.figure).encode("utf-8")).decode("ascii")
        caption = f"<figcaption>{for_html(self.caption)}</figcaption>" if self.caption else ""
        source = f"data:image/svg+xml;base64,{data}"
        return f'<figure><img src="{source}" alt="{for_html(self.alt)}">{caption}</figure>'


@dataclass(frozen=True)
class Folded(PagePart):
    """A part that is hidden until its summary is clicked."""

    summary: str
    part: PagePart

    @override
    def html(self) -> str:
        return f"<details><summary>{for_html(self.summary)}</summary>{self.part.html()}</details>"


@dataclass(frozen=True)
class PageSection:
    """A heading and the parts below it."""

    heading: str
    parts: Sequence[PagePart]


def page(title: str, sections: Sequence[PageSection], script: str = "") -> str:
    """Build a whole HTML page that is safe to open whatever text its sections hold.

    Args:
        title: the title and main heading.
        sections: the sections in order; a page with several begins with links to them.
        script: the only script that the browser may run; it must not contain text from data.
    """
    # The policy names our script by its digest, so that no other can run.
    policy, ending = _POLICY, ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        policy = f"{_POLICY}; script-src 'sha256-{digest}'"
        ending = f"<script>{script}</script>\n"
    # Sections are linked from the top by their numbers: headings may hold any text.
    links = "".join(f'<a href="#s{i}">{for_html(s.heading)}</a>' for i, s in enumerate(sections))
    contents = f"<nav>{links}</nav>\n" if len(sections) > 1 else ""
    body = "\n".join(
        f'<section id="s{i}"><h2>{for_html(section.heading)}</h2>\n'
        + "\n".join(part.html() for part in section.parts)
        + "\n</section>"
        for i, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{for_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{for_html(title)}</h1>\n{contents}{body}\n{ending}</body>\n</html>\n"
    )
