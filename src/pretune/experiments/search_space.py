"""The ranges that a sweep searches, such as `train.learning_rate=log:1e-5..1e-3`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from pretune.errors import PretuneError, RecipeError
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe

FORMS = (
    "log:1e-5..1e-3 (even over the orders of magnitude), 0..0.2, 1..5 (whole numbers), "
    "or values: 8,16,32"
)
_RANGE = re.compile(r"(log:)?\s*(.+?)\s*\.\.\s*(.+)")
_WHOLE = re.compile(r"[-+]?[0-9]+")
#: Keys that belong to the sweep itself.
_FIXED = ("output", "track")


@dataclass(frozen=True)
class Space:
    """The values that one key of the recipe may take."""

    key: str  # as in an override, e.g. `train.learning_rate`
    text: str
    low: float | None = None  # lower end of a range, inclusive; None for listed values
    high: float | None = None  # upper end of a range, inclusive; None for listed values
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()  # the listed values as YAML text; empty for a range

    @property
    def corners(self) -> list[Any]:
        """The values to check in advance: both ends, or all listed values."""
        if self.choices:
            return [self.value(choice) for choice in self.choices]
        return [self.value(self.low), self.value(self.high)]

    def value(self, drawn: Any) -> Any:
        """Convert a drawn value to the value of the recipe."""
        if self.choices:
            return yaml12.parse(drawn, self.key)
        return int(drawn) if self.whole else float(drawn)


def parse_space(given: str) -> Space:
    """Read `KEY=RANGE`; raises a RecipeError for another form or an empty range.

    A RANGE is written `log:1e-5..1e-3`, `0..0.2`, `1..5` or `8,16,32`. It has whole numbers only
    if both ends are written without a point or an exponent.
    """
    key, equals, text = (part.strip() for part in given.partition("="))
    if not equals or not key or not text:
        raise RecipeError(f"--over '{given}': expected KEY=RANGE", f"Ranges: {FORMS}.")
    matched = _RANGE.fullmatch(text)
    ends = matched and (_number(matched[2]), _number(matched[3]))
    if matched and ends and None not in ends:
        whole = all(_WHOLE.fullmatch(matched[i]) for i in (2, 3))
        return _range(Space(key, text, *ends, log=bool(matched[1]), whole=whole))
    if text.startswith("log:"):
        raise RecipeError(f"--over {key}: '{text}' is not a range of numbers", "log:1e-5..1e-3")
    return _listed(key, text)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _range(space: Space) -> Space:
    assert space.low is not None  # noqa: S101 - for the type checker
    assert space.high is not None  # noqa: S101 - for the type checker
    if not space.low < space.high:
        raise RecipeError(
            f"--over {space.key}: {space.text} is empty", "Write the lower end first: 1e-5..1e-3."
        )
    if space.log and space.low <= 0:
        raise RecipeError(
            f"--over {space.key}: a logarithmic range starts above 0, not at {space.low:g}",
            f"Without log: it may: {space.text.removeprefix('log:')}",
        )
    return space


def _listed(key: str, text: str) -> Space:
    # A YAML list, so that values may be anything a recipe holds: none,{layers: 2}
    values = yaml12.parse(f"[{text}]", f"--over {key}")
    choices = tuple(yaml12.inline(value) for value in values)
    if len(choices) < 2:
        raise RecipeError(
            f"--over {key}: '{text}' is one value, which leaves nothing to try",
            f"Ranges: {FORMS}. A fixed value is an override: {key}={text}",
        )
    if len(set(choices)) < len(choices):
        raise RecipeError(f"--over {key}: '{text}' names a value twice", "Drop the second one.")
    return Space(key, text, choices=choices)


def check_spaces(recipe: Recipe, spaces: list[Space]) -> None:
    """Check that a recipe knows every key and takes every end and every listed value.

    Raises a RecipeError if not; for a wrong key, its hint names the nearest known one.
    """
    if not spaces:
        raise RecipeError(
            "there is nothing to try", "Add --over train.learning_rate=log:1e-5..1e-3"
        )
    keys = [space.key for space in spaces]
    for space in spaces:
        if space.key.partition(".")[0] in _FIXED:
            raise RecipeError(f"--over {space.key}: set this for all trials: {space.key}=VALUE")
        if keys.count(space.key) > 1:
            raise RecipeError(f"--over {space.key} is given twice", "Give each key one range.")
    # Each value is tried together with the first value of all other keys.
    first = {space.key: space.corners[0] for space in spaces}
    for space in spaces:
        for value in space.corners:
            try:
                recipe.changed({**first, space.key: value})
            except PretuneError as error:
                raise RecipeError(
                    f"--over {space.key}={space.text}: {error.message}", error.hint
                ) from None
