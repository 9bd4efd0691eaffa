"""`Records`: rows that know their place in a file, so that errors name file, line and column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pretune.data.bad_records import BadRecords
from pretune.errors import DataError, describe_value, did_you_mean, nearest
from pretune.text.decode import SURROGATE
from pretune.text.terminal import names_in_line

Record = dict[str, Any]

#: A longer text is an error: it is nearly always a mistake (a whole file as one text, a lost line
#: break), and would be cut to a few hundred tokens anyway. `data.max_chars` changes the limit.
MAX_CHARS = 100_000

#: What public data sets call the columns of tasks.
_OFTEN_CALLED = {
    "text": (
        *("sentence", "review", "content", "body", "comment", "tweet", "message", "document"),
        *("文本", "内容", "评论"),
    ),
    "label": (
        *("labels", "class", "category", "sentiment", "intent", "target", "stars", "rating"),
        *("topic", "emotion", "tag", "标签", "类别", "情感"),
    ),
    "labels": ("label", "tags", "categories", "genres"),
    "score": ("label", "similarity", "rating", "stars"),
    "sentence1": ("premise", "question1", "text1", "text_a", "query"),
    "sentence2": ("hypothesis", "question2", "text2", "text_b", "passage"),
    "context": ("passage", "paragraph", "article", "premise"),
    "answers": ("answer",),
    "tokens": ("words", "text"),
    "ner_tags": ("tags", "labels", "ner"),
    "source": ("src", "input"),
    "target": ("tgt", "translation", "output"),
    "document": ("article", "text", "body", "dialogue", "source", "content"),
    "summary": ("highlights", "abstract", "headline", "title", "target"),
    "turns": ("dialog", "dialogue", "conversation", "utterances"),
    "messages": ("conversation", "dialog", "dialogue", "chat"),
    "instruction": ("question", "query", "instruct"),
    "output": ("response", "answer", "reply", "completion"),
}


def not_finite(value: object) -> bool:
    """Whether a cell is NaN or infinite: pandas, hence Parquet and JSON, writes NaN for nothing."""
    return isinstance(value, float) and not math.isfinite(value)


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: null, an empty text, NaN or an infinite number."""
    return value is None or (isinstance(value, str) and not value) or not_finite(value)


def similar_column(name: str, columns: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The column that may be meant by a task's name: by its usual names, else by its spelling."""
    columns = list(columns)
    known = {column.casefold(): column for column in reversed(columns)}
    usual = (known[other] for other in (name, *_OFTEN_CALLED.get(name, ())) if other in known)
    return next(usual, None) or nearest(name, columns, cutoff)


def usual_names(name: str) -> tuple[str, ...]:
    """What public data sets call the column that a task calls `name`."""
    return _OFTEN_CALLED.get(name, ())


def all_columns(rows: Iterable[Record]) -> tuple[str, ...]:
    """The names of the columns that any of the rows has, in the order of their first row."""
    return tuple(dict.fromkeys(key for row in rows for key in row))


class ColumnNames(dict[str, str]):
    """A task's names of columns -> the names in the data, for `Records.mapped`.

    Args:
        usual: the names in a recipe. They may be for other data, so data without such a column may
            have it under the task's own name.
        given: the names that a person gave for these very data, which must have all of them.
        known: the columns of the task.

    Raises:
        DataError: a name is given for a column that the task does not have.
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


@dataclass(frozen=True)
class Records:
    """Rows with a memory of where they came from."""

    rows: Sequence[Record]  # one dict a record
    origin: str  # the file or the Hub dataset
    # The line (1-based) of each row in the file, or None where rows have no lines.
    lines: Sequence[int] | None = None
    columns: tuple[str, ...] = ()  # the names of all columns
    # The names of the categories, in order, for each column that the source itself declares as
    # categories.
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_chars: int = MAX_CHARS  # a longer text is refused as a mistake
    # The number (1-based) of each row in the source, where only some rows were taken.
    numbers: Sequence[int] | None = None
    # Whether each item of a list is on a line of its own, the first on the row's.
    line_items: bool = False
    # Our names of columns -> the names in the source, where they were renamed.
    renamed: Mapping[str, str] = field(default_factory=dict)
    # What a record of plain text is: "blank-line" or "file"; None for other sources.
    text_unit: str | None = None
    # The line (1-based) that names the columns of a table, where one does.
    header_line: int | None = None
    # What people are told about how the source was read, a sentence each.
    notes: tuple[str, ...] = ()
    # Which part of the source these are, for people, where it was split; None: all.
    part: str | None = None
    # What was held back from these for validation: its labels are known in training.
    held_back: Records | None = field(default=None, repr=False, compare=False)
    # What was left out of these because it cannot be used; None: nothing.
    bad: BadRecords | None = field(default=None, repr=False, compare=False)
    # How many records the source has, where these are a part of it and that is known.
    whole: int | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int, column: str | None = None, item: int | None = None) -> str:
        """The place of a value, to name in an error: `train.tsv, line 7, column 'label'`.

        `row` and `item`, a place in the list there, are 0-based.
        """
        of_item = "" if item is None or self.line_items else f", item {item + 1}"
        if self.lines is not None:
            place = f"line {self.lines[row] + (item or 0 if self.line_items else 0)}"
        else:
            place = f"row {row + 1 if self.numbers is None else self.numbers[row]}"
        of_column = f", column '{self.in_data(column)}'" if column else ""
        return f"{self.origin}, {place}{of_column}{of_item}"

    def in_data(self, column: str) -> str:
        """What the source calls a column of the task."""
        return self.renamed.get(column, column)

    def with_held_back(self) -> list[Records]:
        """These records, and those that were held back from them, if any."""
        return [self] if self.held_back is None else [self, self.held_back]

    def take(self, which: Sequence[int]) -> Records:
        """The records at these places (0-based), in this order."""
        rows = [self.rows[i] for i in which]
        if self.lines is not None:
            return replace(self, rows=rows, lines=[self.lines[i] for i in which])
        numbers = range(1, len(self) + 1) if self.numbers is None else self.numbers
        return replace(self, rows=rows, numbers=[numbers[i] for i in which])

    @classmethod
    def joined(cls, parts: Iterable[Records]) -> Records:
        """Records of one source that come in parts, at least one, together."""
        parts = list(parts)
        first = parts[0]
        if len(parts) == 1:
            return first
        lines = [number for part in parts for number in part.lines or ()]
        numbers = [number for part in parts for number in part.numbers or ()]
        return replace(
            first,
            rows=[row for part in parts for row in part.rows],
            lines=None if first.lines is None else lines,
            numbers=None if first.numbers is None else numbers,
            columns=tuple(dict.fromkeys(name for part in parts for name in part.columns)),
            notes=tuple(note for part in parts for note in part.notes),
            whole=None,
        )

    def parts(self, size: int) -> Iterator[Records]:
        """These records, `size` at a time; the notes are those of the first part."""
        for start in range(0, len(self), size):
            part = self.take(range(start, min(start + size, len(self))))
            yield replace(part, whole=len(self), notes=self.notes if start == 0 else ())

    def head(self, count: int | None) -> Records:
        """The first `count` records, or all."""
        if count is None or count >= len(self.rows):
            return self
        return self.take(range(count))

    def noting(self, *notes: str) -> Records:
        """These records with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def mapped(self, mapping: Mapping[str, str], needed: Sequence[str]) -> Records:
        """Rename columns to the names that a task uses; columns not named keep theirs.

        The `needed` names must be there afterwards, and all that a `ColumnNames` was `given`.

        Raises:
            DataError: a column is missing; names the columns there are and how to map one.
        """
        # Every needed column must be there under one of its names.
        given = mapping.given if isinstance(mapping, ColumnNames) else {}
        for name in dict.fromkeys([*needed, *given]):
            wanted = mapping.get(name, name)
            # A recipe's mapping may be for its own data, while these have the task's names.
            accepted = {wanted} if name in given else {wanted, name}
            if not accepted & {*self.columns} and self.renamed.get(name) != wanted:
                raise self._no_column(name, wanted, needed)
        renames = {ours: theirs for ours, theirs in mapping.items() if theirs in self.columns}
        if all(theirs == ours for ours, theirs in renames.items()):
            return self
        # A renamed column gives up its old name, not its place: tables of answers keep the order.
        ours_of: dict[str, list[str]] = {}
        for ours, theirs in renames.items():
            ours_of.setdefault(theirs, []).append(ours)

        def rename(values: Mapping[str, Any]) -> dict[str, Any]:
            # A column in the way of a new name is dropped.
            return {
                name: value
                for old, value in values.items()
                for name in ours_of.get(old, () if old in renames else (old,))
            }

        return replace(
            self,
            rows=[rename(row) for row in self.rows],
            columns=tuple(rename(dict.fromkeys(self.columns))),
            categories=rename(self.categories),
            renamed={**self.renamed, **renames},
        )

    def _no_column(self, name: str, wanted: str, needed: Sequence[str]) -> DataError:
        """The error for a task's column that is missing under the name that is `wanted`."""
        # A column that the task reads for something else cannot be meant.
        others = {*needed} - {name}
        near = similar_column(wanted, [own for own in self.columns if own not in others])
        say = f"Say which one it is with data.columns.{name}=COLUMN"
        hint = say if near is None else f"Did you mean '{near}'? {say}"
        # With none of the task's names there, the first record may have been taken for names.
        if self.header_line is not None and not {*needed} & {*self.columns}:
            numbered = enumerate(dict.fromkeys([*needed, name]), start=1)
            hint += (
                f"\n  If line {self.header_line} is a record and names no columns, number them: "
                + " ".join(f"data.columns.{column}={number}" for number, column in numbered)
            )
        return DataError(
            f"{self.origin}: no column '{wanted}'"
            + (f" (for '{name}')" if wanted != name else "")
            + f"; it has {names_in_line(self.columns)}",
            hint,
        )

    def text(self, row: int, column: str) -> str:
        """The text in a column; numbers are written out, and nothing is an empty text.

        Raises:
            DataError: it is infinite, a list or an object, over `max_chars` characters, or not
                valid Unicode.
        """
        value = self.rows[row].get(column)
        if value is None or value != value:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not_finite(value):
            raise DataError(
                f"{self.where(row, column)}: expected a text, found {describe_value(value)}",
                "Give every record a text there, or remove the record.",
            )
        return self.checked(str(value), row, column)

    def items(self, value: Any, row: int, column: str, what: str, hint: str) -> list[Any]:
        """The items of a value of that column, which has to be a list with at least one item.

        Raises:
            DataError: it is not such a list; says `what` items were expected, and gives the hint.
        """
        if isinstance(value, list | tuple) and value:
            return list(value)
        given = "an empty list" if isinstance(value, list | tuple) else describe_value(value)
        raise DataError(
            f"{self.where(row, column)}: expected a list of {what}, found {given}", hint
        )

    def checked(self, text: str, row: int, column: str, item: int | None = None) -> str:
        """Return a text of that column, or of an item there; a DataError if it cannot be used."""
        where = self.where(row, column, item)
        if len(text) > self.max_chars:
            raise DataError(
                f"{where}: a text of {len(text):,} characters (the limit is {self.max_chars:,})",
                "Split the text, or allow it with data.max_chars=N if that is what you mean.",
            )
        if not text.isascii() and (half := SURROGATE.search(text)) is not None:
            raise DataError(
                f"{where}: half a character, \\u{ord(half[0]):04x}, "
                f"at character {half.start() + 1}",
                "A text was cut inside a surrogate pair (an emoji, often): repair or remove it.",
            )
        return text
