"""How much the inputs of a request may be, and what they have to look like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pretune.errors import describe_value
from pretune.serving.options import ServeOptions
from pretune.serving.refusal import invalid, over_limit


def check_inputs(inputs: Any, options: ServeOptions, param: str = "inputs") -> list[Any]:
    """Check the inputs of a request: texts, lists of texts, or mappings of columns.

    Args:
        inputs: them; a text or a mapping alone is one input.
        options: with the limits.
        param: the key of the request.

    Returns:
        the inputs as a list.

    Raises:
        Refusal: 413 there are too many, or a text is too long; 422 they are something else.
    """
    rows = [inputs] if isinstance(inputs, str | dict) else inputs
    if not isinstance(rows, list) or not rows:
        what = "an empty list" if rows == [] else describe_value(inputs)
        raise invalid(
            f"'{param}' has to be a text or a list of texts, pairs or objects, not {what}.", param
        )
    check_number(rows, options, param)
    for number, row in enumerate(rows):
        place = f"{param}[{number}]"
        if not isinstance(row, str | list | dict):
            raise invalid(
                f"'{place}' has to be a text, a list of texts or an object with the model's "
                f"columns, not {describe_value(row)}.",
                place,
            )
        for text in _texts(row):
            check_chars(text, options, place)
    return rows


def check_texts(texts: Any, options: ServeOptions, param: str) -> list[str]:
    """Check the inputs of a request that have to be texts; see `check_inputs`."""
    rows = [texts] if isinstance(texts, str) else texts
    if not isinstance(rows, list) or not rows:
        what = "an empty list" if rows == [] else describe_value(texts)
        raise invalid(f"'{param}' has to be a text or a list of texts, not {what}.", param)
    check_number(rows, options, param)
    for number, text in enumerate(rows):
        place = f"{param}[{number}]"
        if not isinstance(text, str):
            raise invalid(f"'{place}' has to be a text, not {describe_value(text)}.", place)
        check_chars(text, options, place)
    return rows


def check_number(rows: Sequence[Any], options: ServeOptions, param: str) -> None:
    """Refuse more inputs than a request may have."""
    if len(rows) > options.max_inputs:
        raise over_limit(
            413,
            "max_inputs",
            f"'{param}' has {len(rows):,} inputs; the limit is {options.max_inputs:,}. "
            "Send them in several requests.",
            param,
        )


def check_chars(text: str, options: ServeOptions, param: str) -> None:
    """Refuse a text that is longer than texts may be."""
    if len(text) > options.max_chars:
        raise over_limit(
            413,
            "max_chars",
            f"'{param}' has a text of {len(text):,} characters; the limit is "
            f"{options.max_chars:,}.",
            param,
        )


def check_repeated(texts: Sequence[str], times: int, options: ServeOptions, param: str) -> None:
    """Refuse texts that are read with each of many others: written out they would be no body.

    Args:
        texts: that are read again each time.
        times: how many times.
        options: with the limits.
        param: the key of the request that has the texts.
    """
    count = sum(map(len, texts)) * times
    if count > options.max_body:
        raise over_limit(
            413,
            "max_body",
            f"'{param}' is read {times:,} times, which is {count:,} characters; the limit is "
            f"{options.max_body:,}. Send shorter texts, or several requests.",
            param,
        )


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts within an input; its depth is bounded, as its JSON was."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
