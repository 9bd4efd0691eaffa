"""The data of a recipe: records with the columns its task knows, and features of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretune.data import MAX_CHARS, FeatureSet, Records, epoch_order, read
from pretune.errors import DataError
from pretune.recipe import Recipe
from pretune.tasks import AnyTask, featurize, task_class
from pretune.tasks.bundle import Bundle
from pretune.tasks.feature_cache import FeatureCache
from pretune.training.log import Reporter

#: Records that were passed over and are named.
SHOWN = 3


def read_data(recipe: Recipe) -> tuple[Records, Records | None]:
    """The training and the validation records, with the columns the task knows.

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    data = recipe.data
    records = _read(recipe, data.train)
    if isinstance(data.validation, str):
        return records.head(data.limit), _read(recipe, data.validation)
    if data.validation is None:
        return records.head(data.limit), None
    # The same split whatever the seed of the run, so that runs can be compared.
    order = epoch_order(len(records), seed=0, epoch=0).tolist()
    count = round(data.validation * len(records))
    if count == 0 and task_class(recipe.task.name).splits_text:
        return _split_texts(records, data.validation)
    if not 0 < count < len(records):
        raise DataError(
            f"{records.origin}: {len(records)} records are too few to hold back "
            f"{data.validation:g} of them",
            "Give validation data with data.validation=FILE, or none: data.validation=null.",
        )
    return records.take(sorted(order[count:])).head(data.limit), records.take(sorted(order[:count]))


def _split_texts(records: Records, share: float) -> tuple[Records, Records]:
    """The beginning of every text, and its end."""
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in range(len(records)):
        text = records.text(row, "text")
        cut = int(len(text) * (1 - share))
        for part, kept in zip((text[:cut], text[cut:]), rows, strict=True):
            kept.append({**records.rows[row], "text": part})
    return replace(records, rows=rows[0]), replace(records, rows=rows[1])


def _read(recipe: Recipe, source: str) -> Records:
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
    return records.mapped(columns, needed)


def read_features(
    what: str,
    task: AnyTask,
    records: Records,
    bundle: Bundle,
    reporter: Reporter,
    *,
    evaluation: bool = False,
) -> FeatureSet:
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
    reporter.say(
        f"{what}: {len(features):,} from {records.origin}, {int(features.starts[-1]):,} tokens{cut}"
    )
    if features.skipped:
        reporter.say(_passed_over(features, records))
    return features


def _passed_over(features: FeatureSet, records: Records) -> str:
    """How many records were not learned from, and the first of them."""
    count = len(features.skipped)
    lines = [
        f"{count:,} of {len(records):,} records were passed over:" if count > 1 else "passed over:"
    ]
    for item in features.skipped[:SHOWN]:
        name = records.rows[item.record].get("id")
        named = "" if name is None else f" (id {name})"
        lines.append(f"  {records.where(item.record)}{named}: {item.why}")
    return "\n".join(lines + ["  ..."] * (count > SHOWN))
