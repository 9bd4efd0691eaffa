"""`Predictions`: the answers of a model, beside the rows that they answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from typing_extensions import override

from pretune.data.records import Record, Records
from pretune.inference.answer_table import answered_row
from pretune.tasks.base import Prediction
from pretune.text.notebook import Displayed

P = TypeVar("P", bound=Prediction)


class Predictions(list[P], Displayed):
    """A list of answers, which a notebook shows as a table beside what they answer.

    Args:
        answers: in the order of the records.
        records: that they answer.

    Attributes:
        rows: those of the records, under the task's names of columns.
        renamed: these names -> those in the data, where they differ.
    """

    def __init__(self, answers: Iterable[P], records: Records) -> None:
        super().__init__(answers)
        self.rows: Sequence[Record] = records.rows
        self.renamed: Mapping[str, str] = records.renamed

    @override
    def table_rows(self) -> list[Record]:
        """List the rows with their columns and `label`, `score` or what else an answer has.

        A column of an answer that the data have too is called `predicted_label` there.
        """
        pairs = zip(self.rows, self, strict=True)
        return [answered_row(row, self.renamed, own, everything=False) for row, own in pairs]
