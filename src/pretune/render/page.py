"""Build one HTML file that needs nothing else: no network, pictures inside, one script at most."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from pretune.render.escaping import for_html
from pretune.render.svg import figure_svg
from pretune.text.spoken_language import CHINESE, language

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Content security policy: the browser loads and sends nothing, and runs only what `page` adds.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
_STYLE = "\n" + files("pretune.render").joinpath("page.css").read_text(encoding="utf-8")


class PagePart(Protocol):
    """Anything that can stand in a section of a page, such as a `Grid`."""

    def html(self) -> str:
        """Write the part as HTML, with all text from data escaped."""


@dataclass(frozen=True)
class Paragraph(PagePart):
    """Plain text; with the tag `pre`, its lines and spaces are kept."""

    text: str
    tag: str = "p"
    kind: str = ""  # its class in `page.css`

    @override
    def html(self) -> str:
        kind = f' class="{self.kind}"' if self.kind else ""
        return f"<{self.tag}{kind}>{for_html(self.text)}</{self.tag}>"


@dataclass(frozen=True)
class Picture(PagePart):
    """A chart."""

    figure: Figure
    alt: str
    caption: str = ""
    name: str = ""  # stem of the file name where it is written as a file

    @override
    def html(self) -> str:
        # An image rather than inline SVG, so that nothing in it can run.
        data = base64.b64encode(figure_svg(self.figure).encode("utf-8")).decode("ascii")
        caption = f"<figcaption>{for_html(self.caption)}</figcaption>" if self.caption else ""
        source = f"data:image/svg+xml;base64,{data}"
        return f'<figure><img src="{source}" alt="{for_html(self.alt)}">{caption}</figure>'


@dataclass(frozen=True)
class Drawing(PagePart):
    """An SVG within the page, whose texts can be searched and copied.

    Only what `figure_svg` made: its texts are escaped, and the policy of the page runs no script.
    """

    svg: str
    alt: str

    @override
    def html(self) -> str:
        told = f'role="img" aria-label="{for_html(self.alt)}"'
        return f'<figure class="drawing" {told}>{self.svg}</figure>'


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


def page(
    title: str, sections: Sequence[PageSection], script: str = "", lead: Sequence[PagePart] = ()
) -> str:
    """Build a whole HTML page that is safe to open whatever text its sections hold.

    Args:
        title: of the page.
        sections: the page, each linked from its top.
        script: all that may run in the browser; it must not contain text from data.
        lead: what stands under the title, before the links.
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
    opening = "".join(f"{part.html()}\n" for part in lead)
    spoken = "zh-CN" if language() == CHINESE else "en"
    return (
        f'<!DOCTYPE html>\n<html lang="{spoken}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{for_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{for_html(title)}</h1>\n{opening}{contents}{body}\n{ending}</body>\n</html>\n"
    )
