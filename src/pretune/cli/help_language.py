"""Help pages and mistakes in the command line, which typer writes, in another language."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pretune.text.spoken_language import tr

#: The texts of typer's help pages, by their names in `typer.rich_utils`, with {} for a value.
_TITLES = (
    "ARGUMENTS_PANEL_TITLE",
    "OPTIONS_PANEL_TITLE",
    "COMMANDS_PANEL_TITLE",
    "ERRORS_PANEL_TITLE",
    "ABORTED_TEXT",
    "DEFAULT_STRING",
    "ENVVAR_STRING",
    "REQUIRED_LONG_STRING",
    "RICH_HELP",
)
#: An example of the help page of a command, and a note on it.
_EXAMPLE = re.compile(r"(pretune .*\S {2,})\((.*)\)")


@contextmanager
def translated_titles() -> Iterator[None]:
    """Context in which typer's own texts are translated, and no text is cut."""
    from rich.text import Text
    from typer import rich_utils

    before = {name: getattr(rich_utils, name) for name in _TITLES if hasattr(rich_utils, name)}
    for name, text in before.items():
        setattr(rich_utils, name, tr(text))
    make_text = rich_utils._make_rich_text

    # A Chinese sentence has no spaces. In a table, rich takes it for a word, and ends one that is
    # longer than a line with an ellipsis.
    def folded(**options: Any) -> Any:
        text = make_text(**options)
        if isinstance(text, Text):
            text.overflow = "fold"
        return text

    rich_utils._make_rich_text = folded
    try:
        yield
    finally:
        rich_utils._make_rich_text = make_text
        for name, text in before.items():
            setattr(rich_utils, name, text)


def translate_command(command: Any) -> None:
    """Translate the help page of a command: what it does, its examples, its options."""
    command.help = _paragraphs(inspect.cleandoc(command.help or "")) or None
    command.epilog = _paragraphs(command.epilog or "") or None
    # Typer adds `Usage:`, and options of its own when it builds the command.
    usage, parameters = command.get_usage, command.get_params

    def translated_usage(context: Any) -> str:
        text: str = usage(context)
        return text.replace("Usage:", tr("Usage:"), 1)

    def translated_parameters(context: Any) -> Any:
        known = parameters(context)
        for parameter in known:
            parameter.help = tr(parameter.help or "") or None
            if panel := getattr(parameter, "rich_help_panel", None):
                parameter.rich_help_panel = tr(panel)
        return known

    command.get_usage, command.get_params = translated_usage, translated_parameters


def _paragraphs(text: str) -> str:
    return "\n\n".join(map(_paragraph, text.split("\n\n")))


def _paragraph(text: str) -> str:
    example = _EXAMPLE.fullmatch(text)
    return f"{example[1]}({tr(example[2])})" if example else tr(" ".join(text.split()))


def translate_mistake(error: Any) -> None:
    """Translate what typer says of a mistake in the command line."""
    # Without arguments, the message is the help page.
    if type(error).__name__ != "NoArgsIsHelpError":
        text = tr(error.format_message())
        error.format_message = lambda: text
