"""The labels of a record as people write them: lists, texts, and lists of 0 and 1."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pretune.errors import DataError
from pretune.tasks.labels import as_number, label_key

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
#: What stands for nothing in a list that was written as text.
_NOTHING = ("nan", "None", "null", "<NA>")


def flag(value: Any) -> bool | None:
    """Return whether a value says yes or no: 1 or 0, true or false; None for anything else."""
    text = str(value).strip().lower()
    return {"true": True, "false": False}.get(text, {0.0: False, 1.0: True}.get(as_number(text)))


def parse_list(text: str) -> list[Any] | None:
    """Return the items of a list that was written as text; None if the text is none.

    pandas writes a column of lists so: `['joy', 'anger']`; of arrays without commas, `['joy'
    'anger']` and `[0 1 0]`. Sets and tuples are read too.
    """
    text = text.strip()
    if text == "set()":
        return []
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "()", "{}"):
        return None
    # A literal of Python, which would join texts without a comma between them into one.
    inner, literal = text[1:-1], _literal(text)
    quoted = _QUOTED.findall(inner)
    if isinstance(literal, list | tuple | set):
        nested = any(isinstance(item, list | tuple | set) for item in literal)
        if nested or sum(isinstance(item, str) for item in literal) == len(quoted):
            return list(literal)
    if quoted and not _QUOTED.sub("", inner).strip(" ,\n\r\t"):
        return [_literal(item) for item in quoted]
    # Without quotes: numbers between blanks, or words between commas.
    if text[0] != "[":
        return None
    parts = inner.split(",")
    if len(parts) == 1 and all(map(is_number, inner.split())):
        parts = inner.split()
    parts = [part.strip().strip("'\"") for part in parts]
    return [None if part in _NOTHING else part for part in parts if part]


def is_number(value: Any) -> bool:
    """Return whether a value is a number, or a text that is one, or true or false."""
    return flag(value) is not None or math.isfinite(as_number(value))


def _literal(text: str) -> Any:
    """Return the value of a Python literal; None if the text is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a backslash before another letter
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None


def count_flags(lists: Sequence[Sequence[Any]], where: Callable[[int], str]) -> int | None:
    """Return how many labels there are, where the lists have a 0 or a 1 for each of them.

    Lists of 0 and 1 could also be the numbers of labels. But these would not be equally many
    everywhere, and no list would have a number twice. A record without a label may have an empty
    list in any case.

    Args:
        lists: the items of each record.
        where: names the place of a record in errors.

    Returns:
        the length of the lists; None where the items are the names or numbers of labels.

    Raises:
        DataError: lists that must be flags have another number, or not all the same length.
    """
    filled = [(row, items) for row, items in enumerate(lists) if items]
    everything = [item for _, items in filled for item in items]
    if not filled or not all(map(is_number, everything)):
        return None
    # The usual length, and whether a number stands twice in a list.
    widths = Counter(len(items) for _, items in filled)
    width = widths.most_common(1)[0][0]
    twice = any(len({label_key(str(item)) for item in items}) < len(items) for _, items in filled)
    binary = all(flag(item) is not None for item in everything)
    if width < 2 or not ((binary and twice) or (len(widths) == 1 and (binary or twice))):
        return None
    # They are flags: every list has to be right.
    for row, items in filled:
        wrong = next((item for item in items if flag(item) is None), None)
        if len(items) != width or wrong is not None:
            problem = f"{len(items)} numbers" if wrong is None else f"{wrong!r}"
            raise DataError(
                f"{where(row)}: expected {width} numbers 0 or 1, a label each, found {problem}",
                "Give every record a 0 or a 1 for each label, or a list of its labels' names.",
            )
    return width
