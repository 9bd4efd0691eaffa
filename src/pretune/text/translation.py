"""Look a text up in the Chinese catalogue, whatever was put into it.

The catalogue is a gettext file (PO) for each room of the package, `zh/ROOM.po`. Its `msgid` is the
English text as the code has it, with `{0}`, `{1}`, ... in the place of what an f-string puts in, so
that no call has to be written in another way to be translated. A text is looked up as it is, then
by the templates that could have made it. What was put in is copied, with two exceptions:

- `{0!t}` in a translation: it is a text of ours, translated in its turn;
- several words that a template could have made, such as a hint within a hint, are translated too,
  unless the template has them in quotes, as it has names from data.

A file may stand before a text, and a place in it (`a.csv, line 3, column 'text': ...`): the place
is told in Chinese with the text. A list of such texts about one file leaves its name out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import NamedTuple

#: An entry of a PO file, its texts as quoted strings, one or several.
_ENTRY = re.compile(
    r'^msgid((?:\s*"(?:[^"\\]|\\.)*")+)\s*^msgstr((?:\s*"(?:[^"\\]|\\.)*")+)', re.MULTILINE
)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
#: In a template or its translation: a brace, which is doubled, or a place.
_MARK = re.compile(r"\{\{|\}\}|\{(\d+)(!t)?\}")
_WORD = re.compile(r"[A-Za-z]{2,}")
#: A text within a text has at least this many words of its template's own to be seen as ours.
OWN_WORDS = 2
#: A phrase, or a column: what a template with hardly a word of its own takes for no value.
_PHRASE = re.compile(r"[A-Za-z]{2,} (?:[A-Za-z]{2,}|')")
#: How deep texts lie within texts.
_DEPTH = 4
#: What stands right around a place that holds a name from data.
_QUOTES = ("''", '""', "``")
#: Where something lies in a file.
_WHERE = re.compile(r"(?:^|, )(?:(?:line|row|item) [\d,]*\d|column '[^'\n]*')(?=$|, )")
#: How a template begins that tells of a place in a file.
_IN_A_FILE = re.compile(r"\{0\}, (?:line|row) \{1\}")


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Read a PO file: each `msgid` with its `msgstr`, but not the header."""
    for match in _ENTRY.finditer(text):
        msgid, msgstr = ("".join(map(json.loads, _QUOTED.findall(own))) for own in match.groups())
        if msgid:
            yield msgid, msgstr


class Place(NamedTuple):
    """Where something is put into a template."""

    number: int
    told: bool  # whether it is translated, whatever it is


def pieces(template: str) -> tuple[list[str], list[Place]]:
    """The literal parts of a template, one more than it has places, and its places, in order."""
    parts, own, end = [""], [], 0
    for match in _MARK.finditer(template):
        parts[-1] += template[end : match.start()]
        end = match.end()
        if match[1] is None:
            parts[-1] += match[0][0]
        else:
            own.append(Place(int(match[1]), match[2] is not None))
            parts.append("")
    parts[-1] += template[end:]
    return parts, own


class MessageTemplate:
    """An English text with places, and its translation.

    Args:
        english: the text; its places are numbered in order.
        translation: the same places, in any order.
    """

    def __init__(self, english: str, translation: str) -> None:
        self._parts, own = pieces(english)
        self._shown, self._places = pieces(translation)
        self.translated = bool(translation)
        self._in_order = not translation or (
            [place.number for place in self._places] == [place.number for place in own]
        )
        self._longest = max(self._parts, key=len)
        #: How much of a text is the template's own, in characters and in words.
        self.weight = sum(map(len, self._parts))
        self.words = sum(len(_WORD.findall(part)) for part in self._parts)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Patterns that give the first places as little as they can, and as much."""
        escaped = [re.escape(part) for part in self._parts]
        return re.compile("(.*?)".join(escaped), re.S), re.compile("(.*)".join(escaped), re.S)

    def values(self, text: str) -> list[str] | None:
        """What stands in the places of a text; None if another template made it.

        None also where it can be read in several ways and the translation has another order.
        """
        if self._longest not in text:
            return None
        least, greatest = (pattern.fullmatch(text) for pattern in self._patterns)
        if least is None or greatest is None:
            return None
        values = least.groups()
        free = [value for n, value in enumerate(values) if self._around(n) not in _QUOTES]
        if self.words < OWN_WORDS and any(map(_PHRASE.search, free)):
            return None
        # What stands first in a line began there: the lines before are texts of their own.
        if not self._parts[0] and "\n" in values[0]:
            return None
        # `data.csv: 3` before ` of 4` is the name of a file before another text, or a line is.
        prefixed = not self._parts[0] and (": " in values[0] or "\n" in values[0])
        plain = self._in_order or (values == greatest.groups() and not prefixed)
        return list(values) if plain else None

    def _around(self, place: int) -> str:
        """The characters before and after a place."""
        return self._parts[place][-1:] + self._parts[place + 1][:1]

    def fill(self, values: list[str], depth: int) -> str:
        """The translation with values in its places."""
        out = self._shown[0]
        for place, after in zip(self._places, self._shown[1:], strict=True):
            value = values[place.number]
            around = self._around(place.number)
            # A single word, or a name in quotes, may look like a text of ours, and be data.
            if place.told or (" " in value and around not in _QUOTES):
                own = _whole(value, depth, 0 if place.told else OWN_WORDS)
                value = _where(value) if own is None else own
            if out.endswith("。"):  # Chinese has no space between sentences
                value = value.lstrip(" ")
            out += value + after
        return out


class Catalogue:
    """Translations of texts and of templates.

    Args:
        pairs: each English text with its translation, which is empty where nobody wrote it yet:
            such a text stays as it is, though a less fitting template may fit it, too.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._exact: dict[str, str] = {}
        self._templates: list[MessageTemplate] = []
        for english, translation in pairs:
            parts, own = pieces(english)
            if own:
                self._templates.append(MessageTemplate(english, translation))
                if _IN_A_FILE.match(english) and translation.startswith("{0}，"):
                    alone = (_without_file(text) for text in (english, translation))
                    self._templates.append(MessageTemplate(*alone))
            else:
                self._exact[parts[0]] = pieces(translation)[0][0]
        # The template with the greatest part in a text made it.
        self._templates.sort(key=lambda own: -own.weight)

    def look_up(self, text: str, depth: int = 0, own_words: int = 0) -> str | None:
        """Translate a text; None where no template with so many words of its own made it."""
        exact = self._exact.get(text)
        if exact is not None:
            return (exact or None) if len(_WORD.findall(text)) >= own_words else None
        for template in self._templates:
            if template.words >= own_words and (values := template.values(text)) is not None:
                return template.fill(values, depth + 1) if template.translated else None
        return None


def _without_file(template: str) -> str:
    """What is left of a template without the place at its start, and the comma after it."""
    rest = template.removeprefix("{0}").lstrip("，, ")
    return _MARK.sub(lambda m: f"{{{int(m[1]) - 1}{m[2] or ''}}}" if m[1] else m[0], rest)


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The Chinese catalogue of all rooms."""
    folder = files("pretune.text").joinpath("zh")
    texts = (
        file.read_text(encoding="utf-8") for file in folder.iterdir() if file.name.endswith(".po")
    )
    return Catalogue(pair for text in texts for pair in entries(text))


@lru_cache(maxsize=4096)
def translated(text: str) -> str:
    """Translate a text as far as the catalogue has it."""
    return _whole(text, 0, 0) or text


def _whole(text: str, depth: int, own_words: int) -> str | None:
    """Translate a text, or else its lines, or what follows the name of a file or a key."""
    bare = text.strip()
    if not bare or depth > _DEPTH:
        return None
    shown = catalogue().look_up(bare, depth, own_words)
    if shown is not None:
        start = text[: len(text) - len(text.lstrip())]
        return f"{start}{shown}{text[len(text.rstrip()) :]}"
    if "\n" in bare:
        lines = text.split("\n")
        told = [_whole(line, depth + 1, own_words) or line for line in lines]
        return "\n".join(told) if told != lines else None
    name, colon, rest = text.partition(": ")
    shown = _whole(rest, depth + 1, max(own_words, OWN_WORDS)) if colon else None
    return None if shown is None else f"{_where(name)}：{shown}"


def _where(name: str) -> str:
    """Translate what a name says of lines, rows and columns."""
    return _WHERE.sub(lambda own: catalogue().look_up(own[0]) or own[0], name)
