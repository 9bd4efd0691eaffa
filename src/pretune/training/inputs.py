"""The data of a recipe: records with the columns its task knows, and features of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pretune.corpus import StoredDocuments, is_corpus
from pretune.data import MAX_CHARS, Features, Records, Repaired, Skipped, epoch_order, read
from pretune.errors import DataError
from pretune.models import SIZES
from pretune.recipe import Recipe
from pretune.tasks import AnyTask, featurize, task_class
from pretune.tasks.bundle import Bundle
from pretune.tasks.feature_cache import FeatureCache
from pretune.text import Tokenizer, train_tokenizer
from pretune.training.log import Reporter

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
    # The same split whatever the seed of the run, so that runs can be compared.
    order = epoch_order(len(found), seed=0, epoch=0)
    count = round(data.validation * len(found))
    splits = isinstance(found, Records) and task_class(recipe.task.name).splits_text
    if count == 0 and splits:
        return _split_texts(found, data.validation)  # type: ignore[arg-type]
    if not 0 < count < len(found):
        what = "records" if isinstance(found, Records) else "documents"
        raise DataError(
            f"{found.origin}: {len(found)} {what} are too few to hold back "
            f"{data.validation:g} of them",
            "Give validation data with data.validation=FILE, or none: data.validation=null.",
        )
    kept, held_out = np.sort(order[count:]), np.sort(order[:count])
    if isinstance(found, StoredDocuments):
        return found.take(kept).head(data.limit), found.take(held_out)
    return found.take(kept.tolist()).head(data.limit), found.take(held_out.tolist())


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
    if model.tokenizer is not None or model.source not in SIZES:
        return model.tokenizer
    if isinstance(data, StoredDocuments):
        return data.tokenizer
    wanted = model.train_tokenizer
    if wanted is None:
        return None
    texts = task_class(recipe.task.name)(recipe.task).texts(data)
    return train_tokenizer(texts, wanted.kind, wanted.vocab_size)


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


def read_for(
    task: AnyTask,
    source: str | Path,
    *,
    columns: Mapping[str, str],
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int = MAX_CHARS,
    with_targets: bool = True,
) -> Records:
    """Read data for a task: its columns under the names the task knows.

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    needed = [*task.inputs, *(task.targets if with_targets else ())]
    records = read(source, encoding=encoding, quoting=quoting, max_chars=max_chars)
    return task.adapted(records, columns, with_targets).mapped(columns, needed)


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
        cut = f"; {features.truncated:,} {task.was_cut}"
    tokens = int(features.lengths.sum())
    reporter.say(f"{what}: {len(features):,} from {records.origin}, {tokens:,} tokens{cut}")
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
