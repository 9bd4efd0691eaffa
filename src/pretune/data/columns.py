"""Which columns hold what: by number in tables without names; by a guess where nobody says it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pretune.data.records import ColumnNames, Records, is_missing, not_finite, usual_names
from pretune.errors import DataError, did_you_mean
from pretune.text.decode import SURROGATE
from pretune.text.spoken_language import tr
from pretune.text.terminal import names_in_line

#: Names of text columns in public data sets; the first group whose columns are all there is taken.
_TEXTS = (
    ("text",),
    ("sentence1", "sentence2"),
    ("sentence",),
    ("question", "context"),
    ("tokens",),
    ("prompt", "chosen", "rejected"),
    ("source", "target"),
)
_LABELS = ("label", "labels", "ner_tags", "tags")
#: Fields of the messages of a conversation that hold their text.
_MESSAGE_FIELDS = ("content", "value")
#: Rows looked at to guess what a column holds.
_PROBED_ROWS = 1000
#: A column of texts has at least this many characters a row on average. One of Chinese and the like
#: counts as one and a half, as it says as much as several letters; they are counted at the start.
_TEXT_CHARS = 12
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WIDE_IN = 200
#: The number of a column, from 1; or from -1, the last one, backwards.
_NUMBER = re.compile(r"-?[1-9]\d{0,5}")
#: A name of a column is no longer, and has no more words; what is longer looks like a record.
_NAME_CHARS, _NAME_WORDS = 50, 5
#: How much of a first line is shown.
_SHOWN_CHARS = 100
#: A column of labels has at most so many different values, and each of them twice on average.
_MOST_LABELS = 100
#: Words of names of columns.
_NAME_PARTS = re.compile(r"[^\W_]+")
#: A value that YAML reads as a text of these characters, without quotes.
_PLAIN_YAML = re.compile(r"(?!(?:true|false|null|yes|no|on|off)$)[^\W\d][\w .-]*", re.IGNORECASE)


def column_number(name: str | None) -> int | None:
    """The number of a column that a name is, from 1, or from -1 backwards; None for other names."""
    return int(name) if name is not None and _NUMBER.fullmatch(name) else None


def numbered_columns(header: Sequence[str], columns: Mapping[str, str]) -> list[str] | None:
    """Number the columns of a table whose first line is a record; None where it has names.

    It is a record if numbers are asked for, unless a name of the task stands there, or numbers
    alone, as pandas calls columns that have no names.

    Args:
        header: the cells of the first line.
        columns: the task's names -> those in the data.
    """
    asked = [name for name in columns.values() if column_number(name) is not None]
    of_pandas = {*asked} <= {*header} and all(map(str.isdecimal, filter(None, header)))
    if not asked or of_pandas or {*columns} & {*header}:
        return None
    names = [str(number) for number in range(1, len(header) + 1)]
    for name in asked:
        if -len(names) <= int(name) < 0:
            names[int(name)] = name
    return names


def looks_like_record(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the names of a table's columns look like values: its first line may be a record.

    Values are numbers, or long, or stand in the same column of one of the first rows too.
    """
    usual = {name for names in (*_TEXTS, _LABELS) for name in names}
    pandas = [str(number) for number in range(len(header))]
    if [*header] == pandas or usual & {name.casefold() for name in header}:
        return False
    probed = rows[:_PROBED_ROWS]
    return any(
        _is_number(name)
        or len(name) > _NAME_CHARS
        or len(name.split()) > _NAME_WORDS
        or any(row.get(name) == name for row in probed if [*row.values()] != [*row])
        for name in header
    )


def numbered_note(path: object, place: str, cells: Sequence[object]) -> str:
    """The note that the first line of a table is a record."""
    shown = ", ".join(map(repr, cells))[:_SHOWN_CHARS]
    return f"{path}: the columns are numbered, and {place} is a record: {shown}"


def names_note(path: object, place: str, names: Sequence[str]) -> str:
    """The note that the first line of a table is taken for names, though it looks otherwise."""
    shown = ", ".join(map(repr, names))[:_SHOWN_CHARS]
    return f"{path}: {place} is taken for the names of the columns: {shown}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_text(value: Any) -> str | None:
    """A cell as text; None for null and NaN.

    Words are joined by spaces, messages of a conversation by line ends, and numbers written out.
    """
    if value is None or not_finite(value):
        return None
    if isinstance(value, list | tuple):
        if all(isinstance(part, str) for part in value):
            value = " ".join(value)
        elif (texts := _message_texts(value)) is not None:
            value = "\n".join(texts)
    text = value if isinstance(value, str) else str(value)
    # JSON can spell half a character, which tokenizers refuse. Other texts are not copied: rows may
    # share a long one.
    if text.isascii() or SURROGATE.search(text) is None:
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def _message_texts(messages: Sequence[Any]) -> list[str] | None:
    """The texts of a conversation; None for a list of anything else."""
    texts: list[str] = []
    for message in messages:
        fields = _MESSAGE_FIELDS if isinstance(message, Mapping) else ()
        cells = [message[key] for key in fields if key in message]
        if not cells:
            return None
        texts += filter(None, map(as_text, cells))
    return texts


def text_columns(
    records: Records, wanted: Sequence[str] | None = None, label: str | None = None
) -> tuple[str, ...]:
    """The columns that hold the texts: those a person `wanted`, or a guess.

    Raises:
        DataError: a wanted column is missing, or none looks like text.
    """
    # Named columns, or a usual set of names.
    for name in wanted or ():
        check_column(records, name)
    if wanted:
        return tuple(wanted)
    if (usual := usual_texts(records.columns)) is not None:
        return usual
    others = [name for name in records.columns if name != label]
    # No usual name: all columns with long texts; or else the column with the longest.
    lengths = {name: _mean_length(records, name) for name in others}
    texts = [name for name in others if lengths[name] >= _TEXT_CHARS]
    if not texts and lengths:
        texts = [name for name in others if lengths[name] == max(lengths.values()) > 0][:1]
    if not texts:
        raise DataError(
            f"{records.origin}: no column looks like text; it has {names_in_line(records.columns)}",
            "Name the column of the texts.",
        )
    return tuple(texts)


def usual_texts(columns: Collection[str]) -> tuple[str, ...] | None:
    """The usual names of columns with texts that are among these columns; None: there are none."""
    return next((usual for usual in _TEXTS if {*usual} <= {*columns}), None)


def label_column(records: Records, wanted: str | None = None) -> str | None:
    """The column of the labels: as a person `wanted` (else a DataError), a usual one, or a guess.

    It is guessed as for a training: by its values, and where several fit, by words in its name.
    None where that leaves none, or several.
    """
    if wanted is not None:
        check_column(records, wanted)
        return wanted
    usual = next((name for name in _LABELS if name in records.columns), None)
    if usual is not None:
        return usual
    fits = [column for column in records.columns if _has_labels(records, column)]
    if called := _called("label", fits):
        return called[0] if len(called) == 1 else None
    # Texts may repeat as well, and are no labels.
    left = [column for column in fits if not _has_texts(records, column)]
    texts = any(_has_texts(records, column) for column in records.columns)
    return left[0] if texts and len(left) == 1 else None


def guess_columns(
    records: Records, needed: Sequence[str], columns: Mapping[str, str]
) -> dict[str, str]:
    """Guess which columns hold what a task needs and no name tells.

    By their content, and where that leaves several, by words in their names.

    Args:
        records: under the names of their source.
        needed: the task's names of the columns.
        columns: these -> the names in the data, where somebody gives them.

    Returns:
        the task's names -> those in the data; empty where nothing is missing, or where what is
        missing could be several columns or none, or what a person named is missing.
    """
    given = columns.given if isinstance(columns, ColumnNames) else {}
    there = {*records.columns}
    own = {name: {columns.get(name, name), name} & there for name in needed}
    lacking = [name for name in needed if not own[name]]
    if not lacking or any(columns[name] not in there for name in given):
        return {}
    free = [c for c in records.columns if not any(c in names for names in own.values())]
    guessed: dict[str, str] = {}
    # Labels first: names of classes may be as long as texts are.
    for name in sorted(lacking, key=lambda name: name in _FREE_TEXTS):
        left = [column for column in free if column not in guessed.values()]
        column = _guess(records, name, left)
        if column is None:
            return {}
        guessed[name] = column
    return {name: guessed[name] for name in lacking}


#: The columns of texts that any column of texts may be.
_FREE_TEXTS = ("text", "sentence1", "sentence2")
#: The columns that are told by their values.
_BY_CONTENT = (*_FREE_TEXTS, "label", "score")
#: More columns that may be meant are no help.
_MOST_CANDIDATES = 5


def likely_columns(records: Records, needed: Sequence[str]) -> list[str]:
    """Tell which columns may be what a task needs by what is in them, a line for each of its names.

    Empty for a table whose columns are named by what looks like a record.
    """
    if looks_like_record(records.columns, records.rows):
        return []
    lacking = [name for name in needed if name not in records.columns]
    free = [column for column in records.columns if column not in needed]
    fitting = {name: _fitting(records, name, free) for name in lacking if name in _BY_CONTENT}
    return [
        f"By what is in them, {name} may be {names_in_line(fits)}."
        for name, fits in fitting.items()
        if 0 < len(fits) <= _MOST_CANDIDATES
    ]


def _fitting(records: Records, name: str, columns: Sequence[str]) -> list[str]:
    """The columns whose values may be what a task calls `name`; all where values do not tell."""
    if name in _FREE_TEXTS:
        texts = [column for column in columns if _has_texts(records, column)]
        # Texts that are too short to be told by their length are told by a usual name.
        usual = {name, *usual_names(name)}
        return texts or [
            column
            for column in columns
            if column.casefold() in usual and _mean_length(records, column)
        ]
    if name == "label":
        labels = [column for column in columns if _has_labels(records, column)]
        # Texts that repeat are labels only where nothing else is.
        return [column for column in labels if not _has_texts(records, column)] or labels
    if name == "score":
        return [column for column in columns if _has_scores(records, column)]
    return list(columns)


def _guess(records: Records, name: str, columns: Sequence[str]) -> str | None:
    """The column that is meant by a task's name; None where it could be several, or none."""
    fits = _fitting(records, name, columns)
    called = _called(name, fits)
    if len(called) == 1:
        return called[0]
    # Two columns of texts are a pair, in their order.
    limit = 2 if name == "sentence1" else 1
    by_content = name in _BY_CONTENT and not called
    return fits[0] if by_content and 0 < len(fits) <= limit else None


def _called(name: str, columns: Sequence[str]) -> list[str]:
    """Those columns whose names, or words in them, are usual for what a task calls `name`."""
    usual = {name, *usual_names(name)}
    return [c for c in columns if usual & {*map(str.casefold, (c, *_NAME_PARTS.findall(c)))}]


def _probed(records: Records, name: str) -> list[Any]:
    """The values of a column in the first rows, but for missing ones."""
    rows = records.rows[:_PROBED_ROWS]
    return [value for row in rows if not is_missing(value := row.get(name))]


def _has_texts(records: Records, name: str) -> bool:
    """Whether a column has texts rather than names, numbers or keys."""
    if _mean_length(records, name) < _TEXT_CHARS:
        return False
    values = [as_text(value) or "" for value in _probed(records, name)]
    return 2 * sum(" " in value or not value.isascii() for value in values) >= len(values)


def _has_labels(records: Records, name: str) -> bool:
    """Whether the values of a column repeat as labels do."""
    if name in records.categories:
        return True
    values = _probed(records, name)
    if not all(isinstance(value, str | int) for value in values):
        return False
    return 2 <= len({str(value).strip() for value in values}) <= min(_MOST_LABELS, len(values) // 2)


def _has_scores(records: Records, name: str) -> bool:
    """Whether a column has numbers, other than those that count the rows."""
    values = _probed(records, name)
    if not values or not all(_is_number(str(value)) for value in values):
        return False
    numbers = [float(value) for value in values]
    return {b - a for a, b in pairwise(numbers)} != {1.0}


def guess_note(records: Records, guessed: Mapping[str, str]) -> str:
    """The note that columns were guessed, with what says the same to paste."""
    read = ", ".join(tr(f"'{theirs}' is read as {ours}") for ours, theirs in guessed.items())
    return f"{records.origin}: {read}; that is a guess, and to say it: {named_columns(guessed)}"


def named_columns(names: Mapping[str, str]) -> str:
    """What names columns on the command line, ready to be pasted into a shell."""
    return " ".join(_override(f"data.columns.{ours}", name) for ours, name in names.items())


def _override(key: str, value: str) -> str:
    written = value if _PLAIN_YAML.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    return shlex.quote(f"{key}={written}")


def check_column(records: Records, name: str) -> None:
    """Raise a DataError that names the columns there are, unless this one is among them."""
    if name not in records.columns:
        raise DataError(
            f"{records.origin}: no column '{name}'; it has "
            + ", ".join(repr(column) for column in records.columns),
            did_you_mean(name, records.columns),
        )


def _mean_length(records: Records, name: str) -> float:
    """Mean characters of the texts in a column, see `_TEXT_CHARS`; 0 for one of anything else."""
    values = [records.rows[i].get(name) for i in range(min(len(records), _PROBED_ROWS))]
    texts = [as_text(value) or "" for value in values if isinstance(value, str | list)]
    if 2 * len(texts) < len(values):
        return 0.0
    wide = sum(len(_WIDE.findall(text[:_WIDE_IN])) for text in texts if not text.isascii())
    return (sum(map(len, texts)) + wide / 2) / max(len(texts), 1)
