"""Labels and numbers as they are found in data, recipes and checkpoints, checked."""

from __future__ import annotations

import json
import math
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BeforeValidator

from pretune.checkpoints.config import MOST_LABELS
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError, RecipeError, did_you_mean
from pretune.models.config import brief
from pretune.text.terminal import in_line

#: A label in a recipe. YAML's true and false become text as those of JSON data do in `label_text`.
LabelText = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
]

#: The labels of a recipe: a list in their order, or a map from the data's spelling to the label.
LabelNames = Mapping[str, str] | Sequence[str]
#: Returns the labels of a record, by its row, as the data spell them.
RawLabels = Callable[[Records, int], Iterable[str]]
V = TypeVar("V")
D = TypeVar("D")

#: transformers' entry of `config.json` for the name of each output of a head.
ID2LABEL = "id2label"
#: Labels whose counts are shown one by one; of more, the rarest are only counted.
SHOWN_LABELS = 12
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")
_BLANKS = re.compile(r"[\s\u200b\ufeff]+")


def numbered(labels: Iterable[str]) -> dict[str, int]:
    """Map each label to its number."""
    return {label: number for number, label in enumerate(labels)}


def clean_label(text: str) -> str:
    """Return a label without blanks around it, and without double quotes.

    A CSV cell with a blank before its quotes keeps them (RFC 4180), as does a table whose quotes
    mean nothing.
    """
    text = text.strip().strip("\ufeff\u200b").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].strip()
    return text


def label_key(label: str) -> str:
    """Return what spellings of one label share: `1.0` and `1`, `TRUE` and `True` are the same."""
    label = clean_label(label)
    if (whole := _WHOLE.fullmatch(label)) is not None:
        return whole[1]
    return lower if (lower := label.lower()) in ("true", "false") else label


def label_text(records: Records, row: int, column: str, value: Any) -> str:
    """Return a value of the data as a label; of numbered categories, return the name.

    Raises:
        DataError: the value is no label; names file and line.
    """
    # 1 and 1.0 are the same label, however a source writes its numbers.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) and math.isfinite(value):
        raise DataError(
            f"{records.where(row, column)}: a label is a name or a whole number, found {value!r}",
            "If these are scores, train task.name=regress "
            f"{shlex.quote(f'data.columns.score={records.in_data(column)}')}; if they are names, "
            "write them as text.",
        )
    label = clean_label(value) if isinstance(value, str) else str(value)
    if isinstance(value, list | tuple | set | np.ndarray) and column == "label":
        named = shlex.quote(f"data.columns.labels={records.in_data(column)}")
        raise DataError(
            f"{records.where(row, column)}: a list, where one label is expected ({brief(value)})",
            f"multilabel gives a text any number of labels: task.name=multilabel {named}",
        )
    if value is None or not label or isinstance(value, float | list | tuple | set | dict):
        raise DataError(
            f"{records.where(row, column)}: no label there ({value!r})",
            "Give every record a label, or remove the record.",
        )
    names = records.categories.get(column)
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return str(names[value])
    return label


def label_number(
    records: Records, row: int, column: str, raw: str, given: LabelNames | None, ids: dict[str, int]
) -> int:
    """Return the number of a label that the data spell `raw`; the recipe's labels may rename it.

    Raises:
        DataError: the model has no such label; names file and line, and the nearest label.
    """
    label = str(_same(raw, given, raw)) if isinstance(given, Mapping) else raw
    number = _same(label, ids, None)
    if number is None:
        raise DataError(
            f"{records.where(row, column)}: unknown label '{raw}'",
            f"{did_you_mean(raw, list(ids))} The model knows: {', '.join(ids)}. "
            "Correct the data, or train with data that contain this label.",
        )
    return number


def _same(label: str, known: Mapping[str, V], default: D) -> V | D:
    """Return what is known of a label, however it is spelled there."""
    if label in known:
        return known[label]
    key = label_key(label)
    return next((value for own, value in known.items() if label_key(own) == key), default)


def choose_labels(
    given: LabelNames | None,
    records: Records,
    column: str,
    raw_labels: RawLabels,
) -> list[str]:
    """Choose the labels of a model that is to be trained.

    The recipe gives them, else the column's numbered categories, else what `raw_labels` returns for
    the records and those that were held back from them. Of several spellings of a label the
    shortest is taken.

    Raises:
        RecipeError: the recipe lists a label twice.
    """
    if given is not None:
        if not isinstance(given, Mapping) and (twice := _repeated(list(given))) is not None:
            raise RecipeError(
                f"the recipe lists the label '{brief(twice)}' twice",
                "Give each label once, in the order of the model's outputs.",
            )
        return listed_labels(given)
    if column in records.categories:
        return list(records.categories[column])
    spellings = _spellings(_count_raw(records, raw_labels, held_back=True))
    return sorted((shortest(own) for own in spellings.values()), key=numbers_first)


def listed_labels(given: LabelNames) -> list[str]:
    """Return the labels that a recipe gives, in their order.

    In a map two spellings of the data may stand for the same label; a list has each once.
    """
    return list(dict.fromkeys(given.values() if isinstance(given, Mapping) else given))


def shortest(spellings: Iterable[str]) -> str:
    """Return the shortest spelling of a label; of several one that is not all in capitals."""
    return min(spellings, key=lambda spelling: (len(spelling), spelling.isupper(), spelling))


def _count_raw(records: Records, raw_labels: RawLabels, *, held_back: bool) -> Counter[str]:
    """Count the labels as they are spelled, also in what was held back from the records."""
    parts = records.with_held_back() if held_back else [records]
    return Counter(
        raw for part in parts for row in range(len(part)) for raw in raw_labels(part, row)
    )


def _spellings(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Group the spellings of each label, with their counts."""
    spellings: dict[str, dict[str, int]] = {}
    for raw, count in counts.items():
        spellings.setdefault(label_key(raw), {})[raw] = count
    return spellings


def label_remarks(
    labels: Sequence[str], given: LabelNames | None, records: Records, raw_labels: RawLabels
) -> Iterator[str]:
    """Yield lines about the labels of the training data: their counts, and what looks wrong.

    Args:
        labels: of the model.
        given: the recipe's, which may rename those of the data.
        records: to train on.
        raw_labels: returns the labels of a record as the data spell them.
    """
    # How often each label of the model occurs; those that it does not know are an error later.
    raw = _count_raw(records, raw_labels, held_back=False)
    names = given if isinstance(given, Mapping) else {}
    counts = dict.fromkeys(labels, 0)
    known = {label: label for label in labels}
    for spelling, count in raw.items():
        label = _same(str(_same(spelling, names, spelling)), known, None)
        if label is not None:
            counts[label] += count
    yield f"{len(labels):,} labels: {shown_counts(counts)}"
    # Spellings that are read as one label.
    for spellings in _spellings(raw).values():
        if len(spellings) > 1 and not names:
            yield f"read as one label: {_quoted(spellings)}"
    yield from look_alikes(counts)


def look_alikes(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a line, if there are labels that differ only in how they are written."""
    alike: dict[str, dict[str, int]] = {}
    for label, count in counts.items():
        alike.setdefault(_loose_key(label), {})[label] = count
    if groups := [group for group in alike.values() if len(group) > 1]:
        yield (
            f"these labels differ only in case, blanks or the format of a number: "
            f"{'; '.join(map(_quoted, groups))}; if they are the same, correct the data, or map "
            f"each spelling to its label with {_as_one(counts, alike.values())}"
        )


def _as_one(counts: Mapping[str, int], groups: Iterable[Mapping[str, int]]) -> str:
    """Return the option that makes one label of each group, ready to be pasted into a shell."""
    if len(counts) > SHOWN_LABELS:
        return "task.labels={...}"
    frequent = {label: max(own, key=own.__getitem__) for own in groups for label in own}
    names = json.dumps({label: frequent[label] for label in counts}, ensure_ascii=False)
    return shlex.quote(f"task.labels={names}")


def listed_label(label: str) -> str:
    """Return a label as it stands in a list with commas: in quotes if it has a comma itself."""
    shown = in_line(brief(label))
    return repr(shown) if "," in shown else shown


def shown_counts(counts: Mapping[str, int]) -> str:
    """Return how often each label occurs, the most frequent first; of many, the first ones."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{listed_label(label)} ({count:,})" for label, count in ordered[:SHOWN_LABELS]]
    text = ", ".join(shown)
    rest = ordered[SHOWN_LABELS:]
    return f"{text}, and {len(rest):,} more, down to {rest[-1][1]:,}" if rest else text


def _quoted(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{brief(label)!r} ({count:,})" for label, count in ordered)


def _loose_key(label: str) -> str:
    """Return what labels share that look alike: letters without case and blanks, numbers."""
    text = _BLANKS.sub("", unicodedata.normalize("NFKC", label)).casefold()
    number = as_number(text)
    return str(number) if math.isfinite(number) else text


def as_number(value: Any) -> float:
    """Return a number, or a text that is one, as a float; NaN for everything else.

    True and false are no numbers, and neither is `1_0`, though Python reads all of them.
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def numbers_first(label: str) -> tuple[int, float, str]:
    """Sort key: numbers by value and before words; spellings of the same number by the text.

    `nan` counts as a word: it is neither less nor greater than any number, so the order would be
    the one of the set that the labels come from, which differs from process to process.
    """
    number = as_number(label)
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
