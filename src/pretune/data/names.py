"""What data call the columns of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pretune.errors import DataError, did_you_mean


class ColumnNames(dict[str, str]):
    """Our names of columns -> the data's, for `Records.mapped`.

    Args:
        usual: those of a recipe. They may be for other data: data without such a column may have
            it under our own name.
        given: those that a person gave for these very data, which must have all of them.
        known: the columns of the task.

    Attributes:
        given: as above.

    Raises:
        DataError: one is given for a column that the task does not know.
    """

    def __init__(
        self, usual: Mapping[str, str], given: Mapping[str, str], known: Iterable[str]
    ) -> None:
        super().__init__({**usual, **given})
        self.given = dict(given)
        known = list(known)
        for ours, theirs in given.items():
            if ours not in known:
                raise DataError(
                    f"data.columns.{ours}={theirs}: the model's task has no column '{ours}'",
                    did_you_mean(ours, known),
                )
