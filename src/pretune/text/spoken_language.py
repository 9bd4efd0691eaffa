"""The language in which people are spoken to: English, or Chinese in simplified characters.

What is shown is written in English where it is made. `tr` puts it into the language of the moment
where it is shown: a message in the terminal, a heading of a page, a cell of a table that is ours.
Text from data, JSON, file formats, keys of recipes and names of metrics stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

ENGLISH, CHINESE = "en", "zh"
LANGUAGES = (ENGLISH, CHINESE)
#: The environment variable that chooses one of `LANGUAGES`; the locale does where it is not set.
VARIABLE = "PRETUNE_LANG"
#: The variables of the locale for messages, in the order in which POSIX asks them (XBD 8.2).
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
#: Parts of a locale's name that mean traditional characters, which are not written here.
_TRADITIONAL = {"hant", "tw", "hk", "mo"}

_chosen: ContextVar[str | None] = ContextVar("language", default=None)


def language() -> str:
    """The language that is spoken now: that of `speaking`, or else of the environment."""
    return _chosen.get() or language_of(os.environ) or ENGLISH


def language_of(environment: Mapping[str, str]) -> str | None:
    """The language that environment variables ask for; None where PRETUNE_LANG asks for no other.

    A locale in another language, or none, means English.
    """
    asked = environment.get(VARIABLE)
    if asked:
        return _named(asked)
    locale = next(filter(None, map(environment.get, _LOCALE)), "")
    return _named(locale) or ENGLISH


def _named(locale: str) -> str | None:
    """One of `LANGUAGES` by the name of a locale, such as zh_CN.UTF-8; None for all others."""
    name, *rest = locale.partition(".")[0].partition("@")[0].lower().replace("-", "_").split("_")
    if name == CHINESE and _TRADITIONAL & {*rest}:
        return None
    return name if name in LANGUAGES else None


@contextmanager
def speaking(name: str) -> Iterator[None]:
    """Context that speaks one of `LANGUAGES`, whatever the environment asks for."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def labelled(name: str, text: str) -> str:
    """Put a text after the name of what it is about, as in `error: ...`."""
    return f"{name}{': ' if language() == ENGLISH else '：'}{text}"


def tr(text: str) -> str:
    """Put a text of ours into the language that is spoken now.

    Args:
        text: in English, as a literal or an f-string, so that the catalogue's collector sees it.

    Returns:
        its translation; the text itself where there is none.
    """
    if language() == ENGLISH:
        return text
    from pretune.text.translation import translated

    return translated(text)
