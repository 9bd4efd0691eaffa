"""The console through which texts reach a terminal as plain texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from typing_extensions import override

from pretune.text.spoken_language import tr
from pretune.text.terminal import LastingStream, for_terminal, hanging


class PlainConsole(Console):
    """A console that shows texts as texts: no markup, and only those control sequences it makes.

    Args:
        stderr: whether to write to standard error, where losing a text is no error.
        quiet: whether to write nothing.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        file = cast(IO[str], LastingStream(sys.stderr)) if stderr and sys.stderr else None
        super().__init__(
            file=file, stderr=stderr, quiet=quiet, highlight=False, emoji=False, markup=False
        )

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        # Before rich drops some of the control characters without a trace.
        return super().render_str(for_terminal(text), **options)

    @override
    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # What moves the cursor is marked as control, and colours are styles: the rest is text.
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else for_terminal(text), style, control)

    def say(self, text: object, style: str | Style | None = None) -> None:
        """Show a message of ours, its further lines indented, for the terminal to wrap.

        It is put into the language that is spoken.
        """
        self.print(hanging(tr(str(text))), style=style, soft_wrap=True)
