"""Which columns of some records hold the text, and which one the labels, where nobody says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pretune.data.records import Records, not_finite
from pretune.errors import DataError, did_you_mean

#: What public data sets call their texts; the first of these that are all there are taken.
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
#: Where the messages of a conversation hold their text.
_SAID = ("content", "value")
#: Rows looked at to find out what a column holds, and the usual length of a text, in characters.
_LOOKED_AT, _LONG = 1000, 12


def as_text(value: Any) -> str | None:
    """A cell as text, None for nothing and NaN.

    Words are joined by spaces, the messages of a conversation by line ends; numbers are written
    out.
    """
    if value is None or not_finite(value):
        return None
    if isinstance(value, list | tuple):
        if all(isinstance(part, str) for part in value):
            value = " ".join(value)
        elif (said := _messages(value)) is not None:
            value = "\n".join(said)
    text = value if isinstance(value, str) else str(value)
    # JSON can spell half a character, which tokenizers refuse.
    return text.encode("utf-8", "replace").decode("utf-8")


def _messages(parts: Sequence[Any]) -> list[str] | None:
    """What is said in a conversation; None where this is none."""
    said: list[str] = []
    for part in parts:
        cells = [part[key] for key in _SAID if key in part] if isinstance(part, Mapping) else []
        if not cells:
            return None
        said += filter(None, map(as_text, cells))
    return said


def text_columns(
    records: Records, wanted: Sequence[str] | None = None, label: str | None = None
) -> tuple[str, ...]:
    """The columns that hold the texts.

    Args:
        records: to look at.
        wanted: which ones a person named.
        label: the column that holds the labels.

    Raises:
        DataError: one that was named is not there, or none looks like text.
    """
    for name in wanted or ():
        check_column(records, name)
    if wanted:
        return tuple(wanted)
    for usual in _TEXTS:
        if set(usual) <= set(records.columns):
            return usual
    others = [name for name in records.columns if name != label]
    lengths = {name: _usual_length(records, name) for name in others}
    found = [name for name in others if lengths[name] >= _LONG]
    if not found and lengths:
        found = [name for name in others if lengths[name] == max(lengths.values()) > 0][:1]
    if not found:
        raise DataError(
            f"{records.origin}: no column looks like text; it has {', '.join(records.columns)}",
            "Say which one it is, by its name.",
        )
    return tuple(found)


def label_column(records: Records, wanted: str | None = None) -> str | None:
    """The column that holds the labels, None where there is none.

    Raises:
        DataError: the one that was named is not there.
    """
    if wanted is not None:
        check_column(records, wanted)
        return wanted
    return next((name for name in _LABELS if name in records.columns), None)


def check_column(records: Records, name: str) -> None:
    """See that a column is there.

    Raises:
        DataError: it is not; names those that are.
    """
    if name not in records.columns:
        raise DataError(
            f"{records.origin}: no column '{name}'; it has "
            + ", ".join(repr(column) for column in records.columns),
            did_you_mean(name, records.columns),
        )


def _usual_length(records: Records, name: str) -> float:
    """Characters of the texts in a column, on average; 0 where it holds something else."""
    values = [records.rows[i].get(name) for i in range(min(len(records), _LOOKED_AT))]
    texts = [value for value in values if isinstance(value, str | list)]
    if 2 * len(texts) < len(values):
        return 0.0
    return sum(len(as_text(text) or "") for text in texts) / max(len(texts), 1)
