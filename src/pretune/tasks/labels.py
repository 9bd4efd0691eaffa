"""Labels as data spells them: names, numbers, categories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from pretune.data.records import Records
from pretune.errors import DataError, did_you_mean

#: A label in a recipe. YAML's true and false are spelled as those of JSON data are by `label_text`.
LabelText = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
]

#: The labels of a recipe: in order, or from what the data says to what to show.
Given = Mapping[str, str] | Sequence[str]


def label_text(records: Records, row: int, column: str, value: Any) -> str:
    """A label as text; the name where the source numbers its categories.

    Raises:
        DataError: it is none; names file and line.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value == "" or isinstance(value, float | list | dict):
        raise DataError(
            f"{records.where(row, column)}: no label there ({value!r})",
            "Give every record a label, or remove the record.",
        )
    names = records.categories.get(column)
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return str(names[value])
    return str(value)


def label_number(
    records: Records, row: int, column: str, raw: str, given: Given | None, ids: Mapping[str, int]
) -> int:
    """Which label that is.

    Args:
        records: whose label it is, for errors.
        row: the place in them.
        column: the column.
        raw: the label as the data has it.
        given: those of the recipe.
        ids: the number of each label the model knows.

    Raises:
        DataError: it knows no such label; names file and line, and the nearest.
    """
    shown = given.get(raw, raw) if isinstance(given, Mapping) else raw
    if shown not in ids:
        raise DataError(
            f"{records.where(row, column)}: unknown label '{raw}'",
            f"{did_you_mean(raw, list(ids))} The model knows: {', '.join(ids)}. "
            "Repair the data, or train with data that has it.",
        )
    return ids[shown]


def shown_labels(given: Given) -> list[str]:
    """The labels of a recipe, each once."""
    values = given.values() if isinstance(given, Mapping) else given
    return list(dict.fromkeys(values))


def numbers_first(label: str) -> tuple[int, float, str]:
    """Sort 2 before 10, and numbers before words; of one number's spellings by the text.

    `nan` is a word: it is neither before nor after a number, and the order would be that of the set
    the labels were in, another one in each process.
    """
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (1, 0.0, label) if math.isnan(number) else (0, number, label)
