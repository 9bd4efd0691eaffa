"""Which tokens an answer or a loss hangs on: in colours, in the terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from typing_extensions import override

from pretune.decoding.text_stream import visible
from pretune.evaluation.explain import Explained
from pretune.render.escaping import for_html
from pretune.render.page import PagePart, PageSection, Paragraph, page
from pretune.text.spoken_language import tr
from pretune.text.terminal import in_line

#: How many tokens are named on each side.
NAMED = 5
#: Attributions below this share of the strongest have no colour in the terminal.
FAINT = 0.1
_METHOD = (
    "Integrated gradients: how much of the model's confidence in its answer each token accounts "
    "for, compared with the same text with every token masked (or left empty). Orange supports the "
    "answer, blue speaks against it, relative to the strongest token of the text; point at a token "
    "to see its value."
)


@dataclass(frozen=True)
class ColouredTokens(PagePart):
    """Tokens in the colours of their attributions: orange raises the loss, blue lowers it."""

    explained: Explained

    @override
    def html(self) -> str:
        strongest = max(map(abs, self.explained.attributions), default=0.0) or 1.0
        spans = []
        for text, value in zip(self.explained.texts, self.explained.attributions, strict=True):
            colour = "230, 120, 0" if value > 0 else "0, 114, 178"
            style = f"background: rgba({colour}, {abs(value) / strongest * 0.8:.2f})"
            shown = for_html(visible(text))
            space = " " if text[:1].isspace() else ""
            spans.append(f'{space}<span style="{style}" title="{value:+.4f}">{shown}</span>')
        return f'<p class="tokens">{"".join(spans)}</p>'


def explained_view(explained: Explained) -> Text:
    """Show a text in the colours of its attributions, and name the strongest tokens of each side.

    Orange (bold where strong) speaks for the answer, blue against it.
    """
    strongest = max(map(abs, explained.attributions), default=0.0)
    text = Text("  ")
    for token, value in zip(explained.texts, explained.attributions, strict=True):
        shown = in_line(token)
        share = abs(value) / strongest if strongest else 0.0
        style = "" if share < FAINT else "dark_orange" if value > 0 else "dodger_blue1"
        text.append(shown, f"bold {style}" if style and share > 0.5 else style)
    pairs = list(zip(explained.attributions, explained.texts, strict=True))
    for title, sign in ((tr("for it"), 1), (tr("against it"), -1)):
        side = sorted((sign * value, token) for value, token in pairs if sign * value > 0)[::-1]
        named = [f"{in_line(visible(token))} {sign * size:+.3f}" for size, token in side[:NAMED]]
        text.append(f"\n  {title:<10}  " + (", ".join(named) or tr("nothing")))
    return text.append("\n")


def explained_page(title: str, texts: Sequence[tuple[str, Explained]]) -> str:
    """Build an HTML page with each text, its answer and its attributions.

    Args:
        title: of the page.
        texts: the answer to each text, and what explains it.
    """
    sections = [PageSection(tr("How to read this page"), [Paragraph(tr(_METHOD))])]
    for number, (answer, own) in enumerate(texts, start=1):
        parts: list[PagePart] = [Paragraph(answer.rstrip(), "pre", "answer"), ColouredTokens(own)]
        sections.append(PageSection(tr(f"Text {number}"), parts))
    return page(title, sections)
