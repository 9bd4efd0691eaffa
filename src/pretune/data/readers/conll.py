"""Columns as in the CoNLL shared tasks: a word a line, a blank line between sentences.

    EU      NNP  B-NP  B-ORG
    rejects VBZ  B-VP  O

The first column is the word, or the second where the first counts the words of a sentence; the last
column is its tag. `data.columns` may number others. Tabs separate columns, or spaces where a line
has no tab. `-DOCSTART-` lines separate documents (Tjong Kim Sang & De Meulder 2003), and end a
sentence; before a sentence there may be comments that begin with `#`, as in CoNLL-U. A file with
one column has words alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pretune.data.columns import column_number
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.text.decode import decode_file, lines_of

#: Endings of the names of such files; a `.txt` file may be one too, see `looks_like_conll`.
CONLL_SUFFIXES = (".conll", ".bio", ".bmes", ".bioes")
WORDS, TAGS = "tokens", "ner_tags"
#: Tags of entities: outside, or a letter of a tagging scheme and a type.
_TAG = re.compile(r"O|[BIESLUM]-\S+")
_SPACES = re.compile("[ \t]+")  # not \s: in Chinese text an ideographic space may be a word
#: Numbers of lines of CoNLL-U that are no words: of several words together, or of an empty node.
_NO_WORD = re.compile(r"\d+[-.]\d+")

#: A sentence: the number of its first line, and the columns of each line.
_Sentence = tuple[int, list[list[str]]]


def looks_like_conll(text: str, *, any_tags: bool = False) -> bool:
    """Whether the beginning of a text has such columns.

    Args:
        text: some whole lines.
        any_tags: whether tags may be others than those of entities, such as parts of speech, which
            end every line here. Sentences are two or more then, and tabs separate the columns.
    """
    lines = lines_of(text.strip())
    words = [x for x in lines if x.strip() and not x.startswith(("-DOCSTART-", "# "))]
    fields = [_fields(line) for line in words]
    if len(fields) > 1 and all(len(f) > 1 and _TAG.fullmatch(f[-1]) for f in fields):
        return True
    divided = len(words) < len(lines) and all("\t" in x and " " not in x for x in words)
    return any_tags and divided and len({*map(len, fields)}) == 1


def read_conll(
    path: Path, encoding: str = "utf-8", columns: Mapping[str, str] = MappingProxyType({})
) -> Records:
    """Read one record a sentence, with `tokens` and (unless there is one column) `ner_tags`.

    A record's line is the line of its first word; its other words are on the lines after it.

    Args:
        path: the file.
        encoding: of its text.
        columns: the task's names of columns -> those in the data; numbers of columns for `tokens`
            and `ner_tags`, from 1 or from -1 backwards, become the names of the records' columns.

    Raises:
        DataError: a line has another number of columns than the first, or an empty word; there is
            no column with that number.
    """
    lines = lines_of(decode_file(path, encoding))
    comments = _comments(lines)
    sentences = [*_sentences(path, lines, comments)]
    width = len(sentences[0][1][0]) if sentences else 0
    counted = width > 2 and all(map(_is_counted, sentences))
    # Which columns are read, by the names that the records have for them.
    places = {WORDS: int(counted)} | ({TAGS: width - 1} if width > 1 else {})
    for name in (WORDS, TAGS):
        number = column_number(columns.get(name))
        if number is not None and width:
            places.pop(name, None)
            places[columns[name]] = _place(path, name, number, width)
    notes = []
    if comments:
        first = min(comments) + 1
        notes.append(
            f"{path}: comments that begin with '#': {len(comments):,}, the first on line {first}"
        )
    if width > 2 and TAGS in places:
        where = ", ".join(f"{name} from column {place + 1}" for name, place in places.items())
        notes.append(f"{path}: of {width} columns: {where} (data.columns.ner_tags=N is another)")
    # In a counted sentence some lines are no words.
    rows: list[dict[str, Any]] = []
    dropped = 0
    for _, own in sentences:
        words = [f for f in own if not (counted and _NO_WORD.fullmatch(f[0]))]
        rows.append({name: [f[place] for f in words] for name, place in places.items()})
        dropped += len(own) - len(words)
    starts, names = [start for start, _ in sentences], tuple(rows[0]) if rows else ()
    line_items = dropped == 0
    return Records(rows, str(path), starts, names, line_items=line_items, notes=tuple(notes))


def _fields(line: str) -> list[str]:
    """The columns of a line; between tabs a space may be a word."""
    if "\t" not in line:
        return _SPACES.split(line.strip(" \r"))
    return [field.strip(" ") or field for field in line.rstrip(" \t\r").split("\t")]


def _comments(lines: Sequence[str]) -> set[int]:
    """The places of lines that are comments.

    They stand before the first word of a sentence. In them `#` is no word: other lines have another
    number of columns, or none of them has that tag.
    """
    marked = [i for i, line in enumerate(lines) if line.startswith("#")]
    if not marked:
        return set()
    others = (_fields(line) for line in lines if line.strip() and line[0] != "#")
    words = [fields for fields in others if not fields[0].startswith("-DOCSTART-")]
    width, tags = len(words[0]) if words else 0, {fields[-1] for fields in words}
    comments: set[int] = set()
    for i in marked:
        fields = _fields(lines[i])
        begins = i == 0 or not lines[i - 1].strip() or i - 1 in comments
        known = "\t" in lines[i] or width == 1 or _TAG.fullmatch(fields[-1]) or fields[-1] in tags
        if width and begins and (len(fields) != width or not (known or fields[-1] == "#")):
            comments.add(i)
    return comments


def _sentences(path: Path, lines: Sequence[str], comments: set[int]) -> Iterator[_Sentence]:
    width, start = 0, 0
    words: list[list[str]] = []
    for number, line in enumerate([*lines, ""], start=1):
        if number - 1 in comments:
            continue
        if not line.strip(" \t\r") or line.startswith("-DOCSTART-"):
            if words:
                yield start, words
            words = []
            continue
        fields = _fields(line)
        width = width or len(fields)
        if len(fields) != width or not fields[0] or not fields[-1]:
            raise DataError(
                f"{path}, line {number}: {len(fields)} columns ({line[:40]!r}), but the lines "
                f"before have {width}"
                if len(fields) != width
                else f"{path}, line {number}: an empty column ({line[:40]!r})",
                "Each line is a word and its tag with a tab between them; a blank line ends a "
                "sentence.",
            )
        start = start if words else number
        words.append(fields)


def _is_counted(sentence: _Sentence) -> bool:
    """Whether the first column counts the words of a sentence from 1."""
    own = [fields[0] for fields in sentence[1] if not _NO_WORD.fullmatch(fields[0])]
    return own == [str(number) for number in range(1, len(own) + 1)]


def _place(path: Path, name: str, number: int, width: int) -> int:
    """The place of a column from 0; `number` is from 1, or from -1 backwards."""
    if not -width <= number <= width:
        raise DataError(
            f"{path}: no column {number} (for '{name}'); its lines have {width}",
            f"Say which one it is with data.columns.{name}=NUMBER",
        )
    return number - 1 if number > 0 else width + number
