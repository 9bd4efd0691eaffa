"""Records that cannot be used: how many they are, and what is wrong with the first of them."""

from __future__ import annotations

from typing import Literal

from pretune.errors import DataError

#: What is done about records that cannot be used: `data.errors` of a recipe.
Errors = Literal["stop", "skip"]
#: The way on for those who train.
LEAVE_OUT = "Or leave such records out, which is counted: data.errors=skip."
#: Records that are listed, and characters of what is said about each.
LISTED, LENGTH = 10, 240
#: Ways to repair them that are told.
HINTS = 3


class BadRecords:
    """Collects what is wrong with records, so that all of them can be told at once.

    Args:
        origin: the file or the Hub dataset that they are from.

    Attributes:
        count: how many they are.
        first: what is wrong with the first `LISTED` of them; each message begins with the place.
    """

    def __init__(self, origin: str) -> None:
        self.origin, self.count = origin, 0
        self.first: list[DataError] = []

    def add(self, error: DataError) -> None:
        """Count a record."""
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(error)

    def lines(self) -> list[str]:
        """What is wrong with the first records, a line each, and how many more there are."""
        told = [error.message.removeprefix(f"{self.origin}, ") for error in self.first]
        shown = [text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…" for text in told]
        more = self.count - len(shown)
        return [*shown, f"... and {more:,} more"] if more else shown

    def error(self, total: int, *ways_on: str) -> DataError:
        """The error about all of them, with a line for each way out.

        Args:
            total: the number of records, with these.
            ways_on: what can be done other than to repair them.
        """
        # Several kinds of mistakes are repaired in several ways.
        repairs = dict.fromkeys(error.hint for error in self.first if error.hint)
        hint = "\n  ".join([*list(repairs)[:HINTS], *ways_on]) or None
        if self.count == 1:
            return DataError(self.first[0].message, hint)
        head = f"{self.origin}: {self.count:,} of {total:,} records cannot be used:"
        return DataError("\n  ".join([head, *self.lines()]), hint)
