"""The data of a recipe: records with the columns its task knows, and features of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.bundle.bundle import Bundle
from pretune.corpus.store import StoredDocuments, is_corpus
from pretune.data.batch import Features, Repaired, Skipped
from pretune.data.batch_order import epoch_order
from pretune.data.readers.plain_text import TEXT_UNITS
from pretune.data.records import Records
from pretune.errors import DataError, RecipeError, RunError
from pretune.models.families import preset
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import AnyTask, ReadsStream
from pretune.tasks.builtin import task_class
from pretune.tasks.feature_cache import FeatureCache
from pretune.tasks.features import featurize
from pretune.tasks.reading import read_for
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer
from pretune.training.logging import Reporter
from pretune.training.run_folder import RECIPE, RunFolder

#: Records, or the documents of a prepared corpus.
Data = Records | StoredDocuments
#: Records that were passed over and are named.
SHOWN = 3


def read_data(recipe: Recipe) -> tuple[Data, Data | None]:
    """The training and the validation data.

    That is records with the columns the task knows; or documents, where the recipe names a folder
    that `pretune prepare` made.

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    data = recipe.data
    found = _read(recipe, data.train)
    if isinstance(data.validation, str):
        return found.head(data.limit), _read(recipe, data.validation)
    if data.validation is None:
        return found.head(data.limit), None
    task = task_class(recipe.task.name)
    count = round(data.validation * len(found))
    if (
        isinstance(found, Records)
        and issubclass(task, ReadsStream)
        and (count == 0 or len(found) == 1)
    ):
        return _split_texts(found, data.validation)
    groups, what = np.arange(len(found)), "documents"
    if isinstance(found, Records):
        what = "records"
        if task.kept_together:
            what = f"different {' and '.join(name + 's' for name in task.kept_together)}"
            groups = _groups(found, task.kept_together)
    # The same split whatever the seed of the run, so that runs can be compared.
    order = epoch_order(int(groups.max(initial=-1)) + 1, seed=0, epoch=0)
    sizes = np.bincount(groups)[order] if len(found) else order
    taken = _filling(sizes, count)
    if not 0 < len(taken) < len(order):
        raise DataError(
            f"{found.origin}: {len(order)} {what} are too few to hold back "
            f"{data.validation:g} of them",
            "Give validation data with data.validation=FILE, or none: data.validation=null.",
        )
    out = np.isin(groups, order[taken])
    kept, held_out = np.flatnonzero(~out), np.flatnonzero(out)
    if isinstance(found, StoredDocuments):
        return found.take(kept).head(data.limit), found.take(held_out)
    return found.take(kept.tolist()).head(data.limit), found.take(held_out.tolist())


def held_out(run: Path) -> Records | None:
    """The validation data of a run folder; None where it is none, or has none that are records.

    Raises:
        PretuneError: its recipe or the data cannot be read.
    """
    if not (run / RECIPE).is_file():
        return None
    found = read_data(RunFolder(run).recipe())[1]
    return found if isinstance(found, Records) else None


def examined_records(
    run: str,
    task: AnyTask,
    data: str | None,
    *,
    columns: Mapping[str, str],
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int | None = None,
) -> Records:
    """What a trained model is to be asked about: labelled data, or its run's validation data.

    Args:
        run: the run folder.
        task: of the model.
        data: a file or a Hub dataset; None: the validation data.
        columns: as `read_for`'s, and so
        encoding: and
        quoting: and
        max_chars: those of `data`.

    Raises:
        PretuneError: there are none, or they cannot be read.
    """
    if data is not None:
        return read_for(
            *(task, data),
            columns=columns,
            encoding=encoding,
            quoting=quoting,
            max_chars=max_chars,
        )
    records = held_out(Path(run))
    if records is None:
        raise RunError(
            f"{run}: no validation data that are records",
            "Name some: pretune report RUN DATA, pretune compare RUN RUN --data DATA.",
        )
    return records


def fit(task: AnyTask, data: Data) -> None:
    """Let a task learn what it must know beforehand; documents have nothing but their text.

    Raises:
        DataError: the records are not such as the task needs.
    """
    if isinstance(data, Records):
        task.fit(data)


def tokenizer_of(recipe: Recipe, data: Data) -> str | Path | Tokenizer | None:
    """The tokenizer that a recipe asks for; None: the model's own.

    Random weights have none of their own: they take that of a corpus, or one that is trained on the
    data.

    Raises:
        DataError: the data give no such tokenizer.
    """
    model = recipe.model
    if model.tokenizer is not None or preset(model.source) is None:
        return model.tokenizer
    if isinstance(data, StoredDocuments):
        return data.tokenizer
    wanted = model.train_tokenizer
    if wanted is None:
        return None
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


def _filling(sizes: NDArray[np.int64], count: int) -> list[int]:
    """Which groups, in their order, have `count` records or a little less.

    One that would be too much is passed over, however early it comes: a target that many sources
    share may be most of the data. Where all are too large, the smallest.
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
    """`[records]` the number of each one's group: those that share a text in one of the columns,
    and those that share one with them, and so on."""
    first: dict[tuple[str, str], int] = {}
    above = list(range(len(records)))  # another of the group, or itself: union-find

    def root(row: int) -> int:
        while above[row] != row:
            above[row] = row = above[above[row]]
        return row

    for row in range(len(records)):
        for column in columns:
            other = root(first.setdefault((column, records.text(row, column)), row))
            above[max(other, root(row))] = min(other, root(row))
    known: dict[int, int] = {}
    numbers = [known.setdefault(root(row), len(known)) for row in range(len(records))]
    return np.array(numbers, dtype=np.int64)


def _split_texts(records: Records, share: float) -> tuple[Records, Records]:
    """The beginning of every text, and its end."""
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in range(len(records)):
        text = records.text(row, "text")
        cut = int(len(text) * (1 - share))
        for part, kept in zip((text[:cut], text[cut:]), rows, strict=True):
            kept.append({**records.rows[row], "text": part})
    return replace(records, rows=rows[0]), replace(records, rows=rows[1])


def _read(recipe: Recipe, source: str) -> Data:
    if is_corpus(source):
        return StoredDocuments.open(source)
    data = recipe.data
    task = task_class(recipe.task.name)(recipe.task)
    return read_for(
        task,
        source,
        columns=data.columns,
        encoding=data.encoding,
        quoting=data.quoting,
        max_chars=data.max_chars,
    )


def read_features(
    what: str,
    task: AnyTask,
    records: Data,
    bundle: Bundle,
    reporter: Reporter,
    *,
    evaluation: bool = False,
) -> Features:
    """The features of some records, with a line about them for people."""
    with reporter.working(f"reading {what}", len(records)) as done:
        features = featurize(
            *(task, records, bundle.tokenizer),
            evaluation=evaluation,
            progress=done,
            cache=FeatureCache.usual(),
        )
    cut = ""
    if features.truncated:
        cut = f"; {features.truncated:,} {task.truncation_note}"
    tokens = int(features.lengths.sum())
    unit = ""
    if isinstance(records, Records) and records.text_unit is not None:
        unit = f" ({TEXT_UNITS[records.text_unit]})"
    origin = f"{records.origin}{unit}"
    reporter.say(f"{what}: {len(features):,} from {origin}, {tokens:,} tokens{cut}")
    for named, found in (("passed over", features.skipped), ("repaired", features.repaired)):
        if found and isinstance(records, Records):
            reporter.say(_remarks(named, found, records))
    return features


def _remarks(named: str, found: Sequence[Skipped | Repaired], records: Records) -> str:
    """How many records something is said of, and the first of them."""
    count = len(found)
    lines = [f"{count:,} of {len(records):,} records were {named}:" if count > 1 else f"{named}:"]
    for item in found[:SHOWN]:
        name = records.rows[item.record].get("id")
        where = records.where(item.record) + ("" if name is None else f" (id {name})")
        # Of an item of a list, whoever looked at it knows the place better.
        own_place = item.why.startswith(records.origin)
        lines.append(f"  {item.why if own_place else f'{where}: {item.why}'}")
    return "\n".join(lines + ["  ..."] * (count > SHOWN))
