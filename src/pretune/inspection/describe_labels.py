"""The labels of data files, read as training reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pretune.data.records import Records, is_missing
from pretune.errors import DataError
from pretune.tasks.classification.label_lists import parse_list
from pretune.tasks.classification.multilabel import Multilabel, MultilabelOptions
from pretune.tasks.labels import label_key, label_remarks, label_text, shortest

#: The column of `multilabel`, whose texts may hold several labels.
_SEVERAL = "labels"
#: Types of cells that hold several values.
_LISTS = (list, tuple, np.ndarray)
#: The labels of a record, as the data spell them; None where the record says nothing about them.
RowLabels = Sequence[str] | None


@dataclass(frozen=True)
class FileLabels:
    """The labels of a file.

    Attributes:
        rows: the labels of each record, as the data spell them; None where it says nothing.
    """

    rows: Sequence[RowLabels]
    kind: str  # `one` label a record, `several`, or one for each of its `words`
    remarks: Sequence[str]  # what looks wrong, a sentence each


def read_labels(records: Records, column: str | None, text: Sequence[str]) -> FileLabels:
    """Read the labels in a column as `classify`, `multilabel` or `tag` does.

    Records without a label are no mistake here. Values that training refuses are read as they
    stand, and a remark says why it refuses them.

    Args:
        records: of one file.
        column: with the labels; None: there are none.
        text: the columns with the texts, by which tags of words are told from sets of labels.
    """
    if column is None:
        return FileLabels([None] * len(records), "one", ())
    kind, form = _kind(records, column, text), list[str]()
    rows: list[RowLabels] = []
    if kind == "several":
        try:
            rows, form = _several(records, column)
        except DataError as error:
            form = [f"multilabel refuses these labels: {error.message}"]
    if not rows:
        rows = [_plain(records, row, column) for row in range(len(records))]
    # The first remark counts the labels, which a table of its own does here.
    names = label_names([rows])
    _, *remarks = label_remarks([*names.values()], None, records, lambda _, row: rows[row] or ())
    return FileLabels(rows, kind, [*form, *remarks])


def label_names(files: Iterable[Iterable[RowLabels]]) -> dict[str, str]:
    """Choose a spelling of each label, the same for all files, by its `label_key`."""
    spellings: dict[str, list[str]] = {}
    for label in {label: 0 for rows in files for labels in rows for label in labels or ()}:
        spellings.setdefault(label_key(label), []).append(label)
    return {key: shortest(own) for key, own in spellings.items()}


def _kind(records: Records, column: str, text: Sequence[str]) -> str:
    """Tell by the cells whether a record has one label, several, or one for each of its words."""
    cells = [(row.get(column), row) for row in records.rows if not is_missing(row.get(column))]
    lists = [(value, row) for value, row in cells if isinstance(value, _LISTS)]
    if lists and all(any(_as_long(value, row.get(name)) for name in text) for value, row in lists):
        return "words"
    written = (isinstance(value, str) and parse_list(value) is not None for value, _ in cells)
    return "several" if lists or column == _SEVERAL or (cells and all(written)) else "one"


def _as_long(labels: Any, words: Any) -> bool:
    return isinstance(words, _LISTS) and len(words) == len(labels)


def _several(records: Records, column: str) -> tuple[list[RowLabels], list[str]]:
    """Read sets of labels as `multilabel` does, and what it says of their form.

    Raises:
        DataError: it refuses them.
    """
    # A cell without anything is an empty list here: nothing is trained.
    cells = [{_SEVERAL: _listed(row.get(column))} for row in records.rows]
    categories = {_SEVERAL: records.categories[column]} if column in records.categories else {}
    named = replace(records, rows=cells, columns=(_SEVERAL,), categories=categories)
    task = Multilabel(MultilabelOptions())
    task.fit(named)
    rows: list[RowLabels] = [
        None if is_missing(row.get(column)) else [*dict.fromkeys(task.raw_labels(named, number))]
        for number, row in enumerate(records.rows)
    ]
    return rows, [*task.form(named)]


def _listed(value: Any) -> Any:
    return [] if is_missing(value) else list(value) if isinstance(value, tuple) else value


def _plain(records: Records, row: int, column: str) -> RowLabels:
    """Read a label, or each of a list; a value that is no label as it stands."""
    value = records.rows[row].get(column)
    labels = []
    for cell in value if isinstance(value, _LISTS) else [value]:
        if is_missing(cell) or (isinstance(cell, str) and not cell.strip()):
            continue
        try:
            labels.append(label_text(records, row, column, cell))
        except DataError:
            labels.append(str(cell))
    return labels or None
