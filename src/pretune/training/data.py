"""The data of a recipe: records with the columns its task knows, and features of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretune.bundle.bundle import Bundle
from pretune.corpus.store import StoredDocuments, is_corpus
from pretune.data.bad_records import Errors
from pretune.data.batch import Features, Repaired, Skipped
from pretune.data.batch_order import epoch_order
from pretune.data.columns import guess_columns, named_columns
from pretune.data.readers.in_memory import Table, is_from_memory, is_held
from pretune.data.readers.plain_text import TEXT_UNITS, is_plain, parallel_files
from pretune.data.records import ColumnNames, Records, is_missing
from pretune.errors import DataError, RecipeError, RunError, did_you_mean
from pretune.models.families import preset
from pretune.recipe.recipe import Recipe, usual_columns
from pretune.recipe.schema import FoldSection
from pretune.tasks.base import AnyTask, Preprocessor, ReadsStream
from pretune.tasks.builtin import task_class
from pretune.tasks.distillation.teachable import TeachableRecord
from pretune.tasks.features import (
    FeatureCache,
    featurize,
    known_columns,
    own_columns,
    read_for,
)
from pretune.text.spoken_language import tr
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer
from pretune.training.first_look import usable
from pretune.training.folds import fold_numbers
from pretune.training.logging import Reporter
from pretune.training.run_folder import RECIPE, RunFolder
from pretune.training.teaching import student_task

#: Records, or the documents of a prepared corpus.
Data = Records | StoredDocuments
#: How many records that were skipped or repaired are shown.
SHOWN = 3
#: How many columns that are not used are named.
SHOWN_COLUMNS = 10


def read_data(recipe: Recipe) -> tuple[Data, Data | None]:
    """Read the training and the validation data of a recipe: records, or a corpus's documents.

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    data = recipe.data
    # What the recipe calls the columns must be there, but for names of a built-in recipe: the data
    # may be others than its own. Validation data may also have the task's names.
    usual = usual_columns(recipe.task.name) if data.columns else set()
    given = {ours: theirs for ours, theirs in data.columns.items() if (ours, theirs) not in usual}
    elsewhere = _elsewhere(recipe, given)
    here = {ours: theirs for ours, theirs in given.items() if ours not in elsewhere}
    train = _read(recipe, data.train, data.columns, here)
    if isinstance(train, Records):
        train = _noting_columns(recipe, train)
    validation: Data | None = None
    if data.fold is not None:
        train, validation = _fold(recipe, train.head(data.limit), data.fold)
    elif isinstance(data.validation, str):
        # What was guessed of the training data may hold for these.
        names = {**train.renamed, **data.columns} if isinstance(train, Records) else data.columns
        validation = _read(recipe, data.validation, names, {})
        # A name that neither has is a mistake.
        if isinstance(train, Records) and isinstance(validation, Records):
            there = train.renamed.items() | zip(train.columns, train.columns, strict=True)
            lacking = dict(elsewhere.items() - there)
            validation.mapped(ColumnNames({}, lacking, lacking), ())
    elif data.validation is not None:
        train, validation = _hold_back(recipe, train, data.validation)
    train = train if data.fold is not None else train.head(data.limit)
    # A label that occurs only in what was held back is known all the same.
    shared = not isinstance(data.validation, str)
    if shared and isinstance(train, Records) and isinstance(validation, Records):
        train = replace(train, held_back=validation)
    return train, validation


def _elsewhere(recipe: Recipe, given: Mapping[str, str]) -> dict[str, str]:
    """Those columns that are named and may be in the validation data alone.

    Texts that a teacher labels have no column of labels, and a text file has no names.
    """
    if not isinstance(recipe.data.validation, str) or _needs_labels(recipe):
        return {}
    task = task_class(recipe.task.name)(recipe.task)
    names = {*task.targets, *(["text"] if is_plain(Path(recipe.data.train)) else [])}
    return {ours: theirs for ours, theirs in given.items() if ours in names}


def _needs_labels(recipe: Recipe) -> bool:
    """Whether records must have their labels: not where a teacher gives what is learned."""
    task = task_class(recipe.task.name)
    return recipe.teacher is None or not issubclass(task, TeachableRecord)


def _noting_columns(recipe: Recipe, records: Records) -> Records:
    """Note where the task's own names are read, and the columns that it does not read."""
    # Parallel files have no names of their own.
    if parallel_files(recipe.data.train) is None:
        for ours, theirs in recipe.data.columns.items():
            if ours in records.columns and records.renamed.get(ours, ours) != theirs != ours:
                records = records.noting(
                    f"{records.origin}: no column '{theirs}', so '{ours}' is read"
                )
    own = [*own_columns(task_class(recipe.task.name)(recipe.task))]
    if recipe.data.fold is not None and recipe.data.fold.group is not None:
        own.append(recipe.data.fold.group)
    unused = [name for name in records.columns if name not in own]
    shown = ", ".join(unused[:SHOWN_COLUMNS]) + ", ..." * (len(unused) > SHOWN_COLUMNS)
    return records.noting(f"{records.origin}: columns not used: {shown}") if unused else records


def _hold_back(recipe: Recipe, data: Data, share: float) -> tuple[Data, Data]:
    """Split off a share of the data to validate on; the split does not depend on the run's seed."""
    task = student_task(recipe)
    count = round(share * len(data))
    groups, what = np.arange(len(data)), "documents"
    # In a random order that is the same for all seeds, so that runs compare.
    if isinstance(data, Records):
        # Labels are held back in proportion, if any can be without losing its last record.
        strata = task.strata(data) if recipe.data.stratify else None
        if strata is not None and (rows := stratified(strata, count)):
            return _parted(data, rows, f"{share:g} of the records, in proportion to the labels")
        # A single long text, as of a language model, is split by itself.
        if isinstance(task, ReadsStream) and (count == 0 or len(data) == 1):
            return _split_texts(data, share)
        what = "records"
        if task.kept_together:
            what = f"different {' and '.join(name + 's' for name in task.kept_together)}"
            groups = _groups(data, task.kept_together)
    # Otherwise whole groups.
    order = epoch_order(int(groups.max(initial=-1)) + 1, seed=0, epoch=0)
    sizes = np.bincount(groups)[order] if len(data) else order
    taken = _fill(sizes, count)
    if not 0 < len(taken) < len(order):
        raise DataError(
            f"{data.origin}: {len(order)} {what} are too few to hold back {share:g} of them",
            "Give validation data with data.validation=FILE, or none: data.validation=null.",
        )
    rows = np.flatnonzero(np.isin(groups, order[taken])).tolist()
    return _parted(data, rows, f"{share:g} of the {what}, at random")


def _fold(recipe: Recipe, data: Data, fold: FoldSection) -> tuple[Data, Data]:
    """Split off a part for cross-validation."""
    if isinstance(data, StoredDocuments):
        raise DataError(
            f"{data.origin}: a prepared corpus is not split into parts (data.fold)",
            "Give records: a .jsonl, .csv, .tsv or .parquet file.",
        )
    numbers = record_folds(recipe, data, fold)
    rows = np.flatnonzero(numbers == fold.number - 1).tolist()
    return _parted(data, rows, f"part {fold.number} of {fold.of}")


def record_folds(recipe: Recipe, records: Records, fold: FoldSection) -> NDArray[np.int64]:
    """Return `[N]` the part of each record in cross-validation, from 0.

    Raises:
        DataError: fewer records, or groups of them, than parts; or no such column.
    """
    task, groups, what = student_task(recipe), None, "records"
    if fold.group is not None:
        groups, what = _column_groups(records, fold.group), f"values of '{fold.group}'"
    elif task.kept_together:
        groups = _groups(records, task.kept_together)
        what = f"different {' and '.join(name + 's' for name in task.kept_together)}"
    number = len(records) if groups is None else int(groups.max(initial=-1)) + 1
    if number < fold.of:
        raise DataError(
            f"{records.origin}: {number} {what} are too few for {fold.of} parts",
            "Ask for fewer: --folds N.",
        )
    strata = task.strata(records) if recipe.data.stratify else None
    return fold_numbers(len(records), fold.of, strata, groups)


def _column_groups(records: Records, column: str) -> NDArray[np.int64]:
    """Number the values of a column, under the data's name for it, in the order of the records.

    Raises:
        DataError: no such column, or a record with nothing in it.
    """
    ours = {theirs: own for own, theirs in records.renamed.items()}.get(column, column)
    if ours not in records.columns:
        names = [records.renamed.get(name, name) for name in records.columns]
        raise DataError(
            f"{records.origin}: no column '{column}' to group by", did_you_mean(column, names)
        )
    numbers: dict[str, int] = {}
    groups = np.empty(len(records), dtype=np.int64)
    for row, record in enumerate(records.rows):
        if is_missing(value := record.get(ours)):
            raise DataError(
                f"{records.where(row, column)}: nothing there, and records are grouped by it",
                "Give every record a value, or group by another column.",
            )
        groups[row] = numbers.setdefault(str(value), len(numbers))
    return groups


def _parted(data: Data, rows: Sequence[int], part: str) -> tuple[Data, Data]:
    """Split off some rows, in the order of the data; `part` says for people which they are."""
    out = np.isin(np.arange(len(data)), rows)
    kept, held_back = np.flatnonzero(~out), np.flatnonzero(out)
    if isinstance(data, StoredDocuments):
        return data.take(kept), data.take(held_back)
    parted = replace(data.take(held_back.tolist()), part=f"held back: {part}", notes=(), bad=None)
    return data.take(kept.tolist()), parted


def stratified(labels: Sequence[Collection[str]], count: int) -> list[int]:
    """Pick records that have each label about as often, in proportion, as all records have it.

    A record with several labels counts for the rarest of them. The last record with a label is
    never picked, so there may be fewer than `count`.

    Args:
        labels: those of each record.
        count: how many records to pick.

    Returns:
        the rows, ascending; the same in every run.
    """
    # The records of each rarest label, in a random order.
    totals = Counter(label for own in labels for label in set(own))
    strata: dict[str | None, list[int]] = {}
    for row in epoch_order(len(labels), seed=0, epoch=0).tolist():
        rarest = min(labels[row], key=lambda label: (totals[label], label), default=None)
        strata.setdefault(rarest, []).append(row)
    # They are laid evenly from 0 to 1, and the first `count` of all are picked: each label gives
    # its share, rounded (Sainte-Laguë's method, as for seats in a parliament).
    places = {
        row: (number + 0.5) / len(rows)
        for rows in strata.values()
        for number, row in enumerate(rows)
    }
    picked: list[int] = []
    left = totals.copy()
    for row in sorted(places, key=places.__getitem__):
        own = set(labels[row])
        if len(picked) < count and all(left[label] > 1 for label in own):
            picked.append(row)
            left.subtract(own)
    return sorted(picked)


def _fill(sizes: NDArray[np.int64], count: int) -> list[int]:
    """Pick groups, in their order, that have `count` records together or a little less.

    A group that is too large is passed over, however early it comes: a target that many sources
    share may be most of the data. Where all are too large, the smallest is picked.
    """
    taken, total = [], 0
    for place, size in enumerate(sizes.tolist()):
        if total == count:
            break
        if total + size <= count:
            taken.append(place)
            total += size
    return taken or ([int(sizes.argmin())] if count and len(sizes) else [])


def _groups(records: Records, columns: Sequence[str]) -> NDArray[np.int64]:
    """`[N]` the group of each record: records that share a text in one of the columns are in the
    same group, directly or through others (union-find)."""
    first: dict[tuple[str, str], int] = {}
    parent = list(range(len(records)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for row in range(len(records)):
        for column in columns:
            other = root(first.setdefault((column, records.text(row, column)), row))
            parent[max(other, root(row))] = min(other, root(row))
    # Number the groups in the order of their first records.
    numbers: dict[int, int] = {}
    return np.array(
        [numbers.setdefault(root(row), len(numbers)) for row in range(len(records))], dtype=np.int64
    )


def _split_texts(records: Records, share: float) -> tuple[Records, Records]:
    """The beginning of every text, and its end."""
    beginnings, ends = [], []
    for row, record in enumerate(records.rows):
        text = records.text(row, "text")
        cut = int(len(text) * (1 - share))
        beginnings.append({**record, "text": text[:cut]})
        ends.append({**record, "text": text[cut:]})
    part = f"held back: the last {share:g} of each text"
    held_back = replace(records, rows=ends, part=part, notes=(), bad=None)
    return replace(records, rows=beginnings), held_back


def _read(recipe: Recipe, source: str, names: Mapping[str, str], given: Mapping[str, str]) -> Data:
    """Read some data; `names` of its columns are usual, those that are `given` must be there."""
    if is_corpus(source):
        check_no_columns(source, given)
        return StoredDocuments.open(source)
    data, task = recipe.data, task_class(recipe.task.name)(recipe.task)
    needs_labels = _needs_labels(recipe)
    records = read_for(
        task,
        source,
        columns=ColumnNames(names, given, known_columns(task)),
        encoding=data.encoding,
        quoting=data.quoting,
        max_chars=data.max_chars,
        with_targets=needs_labels,
        first_look=True,
    )
    records = usable(task, records, data, with_targets=needs_labels)
    return records if needs_labels else _noting_labels(task, records, names)


def _noting_labels(task: Preprocessor, records: Records, names: Mapping[str, str]) -> Records:
    """Note a column that looks like the labels, where records may do without them."""
    lacking = [name for name in task.targets if name not in {*records.columns, *names}]
    guessed = guess_columns(records, lacking, {})
    if not guessed:
        return records
    could = ", ".join(f"'{theirs}' could be read as {ours}" for ours, theirs in guessed.items())
    return records.noting(
        f"{records.origin}: {could}, but is not; to read it: {named_columns(guessed)}"
    )


def check_no_columns(source: str | Path, given: Mapping[str, str]) -> None:
    """Raise a DataError where names are given for the columns of a prepared corpus."""
    if given:
        raise DataError(
            f"{source}: a prepared corpus has no columns but its text", "Leave out the columns."
        )


def held_out(run: Path) -> Records | None:
    """The validation records of a run; None without a run or without such records at hand."""
    if not (run / RECIPE).is_file():
        return None
    recipe = RunFolder(run).recipe()
    # Data from the memory of a program are there only while it hands them in.
    sources = (recipe.data.train, recipe.data.validation)
    if any(isinstance(own, str) and is_from_memory(own) and not is_held(own) for own in sources):
        return None
    validation = read_data(recipe)[1]
    return validation if isinstance(validation, Records) else None


def examined_records(
    run: str,
    task: AnyTask,
    # A file, a Hub dataset or a table in memory; None: the validation data.
    data: str | Path | Table | None,
    *,
    columns: Mapping[str, str],  # the task's names of columns -> those in `data`
    encoding: str = "utf-8",  # of `data`, if it is a text file
    quoting: str = "auto",  # of `data`, if it is a CSV or TSV file
    max_chars: int | None = None,  # longer texts in `data` are refused
) -> Records:
    """Records to examine a trained model on: labelled data, or its run's validation data."""
    if data is not None:
        return read_for(
            task, data, columns=columns, encoding=encoding, quoting=quoting, max_chars=max_chars
        )
    records = held_out(Path(run))
    if records is None:
        raise RunError(
            f"{run}: no validation data that are records",
            "Name some: pretune report RUN DATA, pretune compare RUN RUN --data DATA.",
        )
    return records


def fit(task: Preprocessor, data: Data) -> None:
    """Let a task learn what it must know beforehand; documents have only their text."""
    if isinstance(data, Records):
        task.fit(data)


def tokenizer_for(recipe: Recipe, data: Data) -> str | Path | Tokenizer | None:
    """The tokenizer that a recipe asks for; None: the model's own.

    Random weights come without a tokenizer. They take the tokenizer of a prepared corpus, or a new
    one that is trained on the data.
    """
    model = recipe.model
    if model.tokenizer is not None or preset(model.source) is None:
        return model.tokenizer
    if isinstance(data, StoredDocuments):
        return data.tokenizer
    wanted = model.train_tokenizer
    if wanted is None:
        return None
    # One for all texts, or one for each side of a translation.
    task = task_class(recipe.task.name)(recipe.task)
    if wanted.joint:
        return train_tokenizer(task.texts(data), wanted.kind, wanted.vocab_size)
    columns = task.text_columns
    if len(columns) != 2:
        raise RecipeError(
            f"model.train_tokenizer.joint: {recipe.task.name} reads and writes no two languages",
            "Leave it out: it is for task.name=translate.",
        )
    source, target = (
        train_tokenizer(
            (data.text(row, column) for row in range(len(data))), wanted.kind, wanted.vocab_size
        )
        for column in columns
    )
    source.target = target
    return source


def read_features(
    what: str,
    task: Preprocessor,
    records: Data,
    bundle: Bundle,
    reporter: Reporter,
    *,
    evaluation: bool = False,
    errors: Errors | None = None,
) -> Features:
    """Make the features of some data; report how they were read, their number and what is wrong.

    Args:
        what: what people call the data, e.g. `validation`.
        task: of the model.
        records: records or documents.
        bundle: whose tokenizer is taken.
        reporter: is told.
        evaluation: whether the features are for evaluation rather than training.
        errors: what is done about records that cannot be used (`data.errors`); None: the first of
            them is an error.
    """
    if isinstance(records, Records):
        for note in records.notes:
            reporter.say(note)
    with reporter.working(f"reading {what}", len(records)) as done:
        features = featurize(
            *(task, records, bundle.tokenizer),
            evaluation=evaluation,
            progress=done,
            cache=FeatureCache.usual(),
            errors=errors,
        )
    tokens = int(features.lengths.sum())
    cut = f"{features.truncated:,} of them {task.truncation_note}" if features.truncated else ""
    cut = f"; {tr(cut)}" if cut else ""
    which = ""
    if isinstance(records, Records):
        unit = None if records.text_unit is None else TEXT_UNITS[records.text_unit]
        which = "; ".join(map(tr, filter(None, (unit, records.part))))
        which = f" ({which})" if which else ""
    reporter.say(f"{what}: {len(features):,} from {records.origin}{which}, {tokens:,} tokens{cut}")
    if isinstance(records, Records):
        for done_to, items in (("skipped", features.skipped), ("repaired", features.repaired)):
            if items:
                reporter.say(_remarks(done_to, items, records))
    return features


def _remarks(done_to: str, items: Sequence[Skipped | Repaired], records: Records) -> str:
    """Say how many records were skipped or repaired, and why the first of them."""
    count = len(items)
    lines = [f"{count:,} of {len(records):,} records {'was' if count == 1 else 'were'} {done_to}:"]
    for item in items[:SHOWN]:
        name = records.rows[item.record].get("id")
        where = records.where(item.record) + ("" if name is None else f" (id {name})")
        # A reason that names the place itself, as for an item of a list, knows it better.
        names_place = item.why.startswith(records.origin)
        lines.append(f"  {item.why if names_place else f'{where}: {item.why}'}")
    return "\n".join(lines + ["  ..."] * (count > SHOWN))
