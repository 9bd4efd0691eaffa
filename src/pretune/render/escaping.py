"""Text from data as plain text on an HTML page or in Markdown; for terminals see `text/terminal`.

Whatever a data file or a checkpoint holds, it cannot break a table, or become a link or a tag.
"""

from __future__ import annotations

import html
import re
import unicodedata

from pretune.text.terminal import for_terminal

#: Characters with a meaning in Markdown, in HTML or in the formulas of the Hub.
_SPECIAL = re.compile(r"[&<>|`*_\[\]\\~#$!{}]|(?<=\w):(?=//)|(?<=www)\.|@(?=\w)")
#: Invisible marks that reverse the direction of the text after them (Unicode standard annex 9).
_DIRECTION_MARKS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: Longest text shown in a Markdown table, in characters.
_LONGEST_MARKDOWN = 200


def one_line(text: object) -> str:
    """Put a text on one line, without control characters and direction marks."""
    shown = "".join(
        " " if unicodedata.category(c) in {"Cc", "Zl", "Zp", "Cs"} else c for c in str(text)
    )
    return " ".join(_DIRECTION_MARKS.sub("", shown).split())


def shortened(text: str, longest: int) -> str:
    """Cut a text to at most `longest` characters, the last one an ellipsis if anything is lost."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def for_html(text: object) -> str:
    """Escape a text for HTML, in element content and in quoted attributes."""
    # Control characters and unpaired surrogates cannot be written in HTML (HTML, 13.2.3.5).
    return html.escape(for_terminal(text), quote=True)


def for_markdown(text: object) -> str:
    """Escape a text for use within a line of Markdown; it becomes one line and is shortened."""
    line = shortened(one_line(text), _LONGEST_MARKDOWN)
    # Entities rather than backslashes: what they stand for is never read as structure.
    return _SPECIAL.sub(lambda m: f"&#{ord(m[0])};", line)


def fenced(text: str, language: str) -> str:
    """Make a Markdown code block that no text can end early."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
