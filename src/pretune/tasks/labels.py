"""Labels and numbers as they are found in data, recipes and checkpoints, checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from pretune.checkpoints.config import MOST_LABELS
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError, did_you_mean
from pretune.models.config import brief

#: A label in a recipe. YAML's true and false become text as those of JSON data do in `label_text`.
LabelText = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
]

#: The labels of a recipe: a list in their order, or a map from the data's spelling to the label.
LabelNames = Mapping[str, str] | Sequence[str]

#: transformers' entry of `config.json` for the name of each output of a head.
ID2LABEL = "id2label"


def numbered(labels: Iterable[str]) -> dict[str, int]:
    """Map each label to its number."""
    return {label: number for number, label in enumerate(labels)}


def label_text(records: Records, row: int, column: str, value: Any) -> str:
    """Return a value of the data as a label; of numbered categories, return the name.

    Raises:
        DataError: the value is no label; names file and line.
    """
    # 1 and 1.0 are the same label, however a source writes its numbers.
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
    records: Records, row: int, column: str, raw: str, given: LabelNames | None, ids: dict[str, int]
) -> int:
    """Return the number of a label that the data spell `raw`; the recipe's labels may rename it.

    Raises:
        DataError: the model has no such label; names file and line, and the nearest label.
    """
    label = given.get(raw, raw) if isinstance(given, Mapping) else raw
    if label not in ids:
        raise DataError(
            f"{records.where(row, column)}: unknown label '{raw}'",
            f"{did_you_mean(raw, list(ids))} The model knows: {', '.join(ids)}. "
            "Correct the data, or train with data that contain this label.",
        )
    return ids[label]


def choose_labels(
    given: LabelNames | None,
    records: Records,
    column: str,
    raw_labels: Callable[[int], Iterable[str]],
) -> list[str]:
    """Choose the labels of a model that is to be trained.

    The recipe gives them, else the column's numbered categories, else what `raw_labels` returns for
    the records.
    """
    # Two spellings of the data may stand for the same label.
    if given is not None:
        return list(dict.fromkeys(given.values() if isinstance(given, Mapping) else given))
    if column in records.categories:
        return list(records.categories[column])
    occurring = {raw for row in range(len(records)) for raw in raw_labels(row)}
    return sorted(occurring, key=numbers_first)


def numbers_first(label: str) -> tuple[int, float, str]:
    """Sort key: numbers by value and before words; spellings of the same number by the text.

    `nan` counts as a word: it is neither less nor greater than any number, so the order would be
    the one of the set that the labels come from, which differs from process to process.
    """
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (1, 0.0, label) if math.isnan(number) else (0, number, label)


def finite(value: Any, name: str) -> float:
    """Return a number of a checkpoint's JSON file as a float.

    Raises:
        ValueError: the value is no finite number; names the entry.
    """
    # Python's JSON reader gives integers of any length, and accepts NaN and Infinity.
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {brief(value)}, not a finite number")
    return number


def stored_labels(value: Any) -> list[str]:
    """Return the labels of a `pretune.json`.

    Raises:
        ValueError: the value is no list of texts, or has one of them twice.
    """
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise ValueError(f"labels is {brief(value)}, not a list of texts")
    if (twice := _repeated(value)) is not None:
        raise ValueError(f"labels has '{brief(twice)}' twice")
    return list(value)


def published_labels(config: Mapping[str, Any]) -> list[str]:
    """Return a head's outputs by `id2label` of `config.json`; default: `LABEL_0`, `LABEL_1`, ...

    Raises:
        CheckpointError: the labels are not numbered 0, 1, 2, ..., a name occurs twice, or their
            number makes no sense.
    """
    # The number of labels, which a damaged file can make absurdly large.
    names = config.get(ID2LABEL) or {}
    count = len(names) if names else config.get("num_labels", 2)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MOST_LABELS:
        raise CheckpointError(
            f"config.json: {ID2LABEL if names else 'num_labels'} makes it {brief(count)} labels",
            f"Expected a whole number from 1 to {MOST_LABELS:,}.",
        )
    if not names:
        return [f"LABEL_{i}" for i in range(count)]
    # The names, in the order of their numbers; JSON has these as text.
    numbers = [str(i) for i in range(count)]
    if set(names) != set(numbers):
        wrong = next(number for number in names if number not in set(numbers))
        raise CheckpointError(
            f"config.json: {ID2LABEL} has {count} labels, but one has the number {brief(wrong)!r}",
            f"Number them from 0 to {count - 1}, in the order of the head's outputs.",
        )
    labels = [str(names[number]) for number in numbers]
    if (twice := _repeated(labels)) is not None:
        raise CheckpointError(
            f"config.json: {ID2LABEL} has '{brief(twice)}' twice",
            "Give each output of the head its own name.",
        )
    return labels


def label_entries(labels: Sequence[str]) -> dict[str, Any]:
    """Return `id2label` and `label2id` for `config.json`."""
    names = {str(number): label for number, label in enumerate(labels)}
    return {ID2LABEL: names, "label2id": numbered(labels)}


def _repeated(labels: list[str]) -> str | None:
    return next((label for label, count in Counter(labels).items() if count > 1), None)
