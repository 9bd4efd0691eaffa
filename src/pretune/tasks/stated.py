"""What the files of a checkpoint state about its task: numbers and labels, checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pretune.checkpoints.config import MOST_LABELS
from pretune.errors import CheckpointError
from pretune.models.config import brief

#: transformers' entry for the name of each output of a head.
ID2LABEL = "id2label"


def finite(value: Any, name: str) -> float:
    """A number that can be compared with others.

    Args:
        value: as JSON had it: an integer may be of any length.
        name: what it is called there.

    Raises:
        ValueError: it is none.
    """
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
    """The labels of a `pretune.json`.

    Raises:
        ValueError: they are no list of texts, or one is there twice.
    """
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise ValueError(f"labels is {brief(value)}, not a list of texts")
    if (twice := _repeated(value)) is not None:
        raise ValueError(f"labels has '{brief(twice)}' twice")
    return list(value)


def published_labels(config: Mapping[str, Any]) -> list[str]:
    """The names of a head's outputs by `id2label`; without it `LABEL_0` and so on, as transformers.

    Args:
        config: the contents of `config.json`.

    Raises:
        CheckpointError: it numbers them in another way than 0, 1, 2, ..., has a name twice, or
            their number makes no sense.
    """
    names = config.get(ID2LABEL) or {}
    count = len(names) if names else config.get("num_labels", 2)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MOST_LABELS:
        raise CheckpointError(
            f"config.json: {ID2LABEL if names else 'num_labels'} makes it {brief(count)} labels",
            f"Expected a whole number from 1 to {MOST_LABELS:,}.",
        )
    if not names:
        return [f"LABEL_{i}" for i in range(count)]
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
            "Give each of the head's outputs a name of its own there.",
        )
    return labels


def _repeated(labels: list[str]) -> str | None:
    """The first that was there before, if any."""
    return next((label for label, count in Counter(labels).items() if count > 1), None)
