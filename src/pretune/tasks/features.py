"""From records to features: tokenized or taken from the cache; from a corpus on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from pretune.corpus.store import StoredDocuments
from pretune.data.batch import Feature, Features, FeatureSet, Repaired, Skipped
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.tasks.base import Preprocessor, ReadsCorpus
from pretune.tasks.feature_cache import FeatureCache, source_of
from pretune.tokenizers.tokenizer import Tokenizer

#: Records that are tokenized at a time.
CHUNK = 1024


def featurize(
    task: Preprocessor,
    records: Records | StoredDocuments,
    tokenizer: Tokenizer,
    *,
    with_targets: bool = True,
    evaluation: bool = False,
    progress: Callable[[int], None] | None = None,
    cache: FeatureCache | None = None,
) -> Features:
    """Make the features of a data set, in parallel.

    Args:
        task: decides what a feature is.
        records: the data set, or a prepared corpus, whose features are made on demand.
        tokenizer: of the model.
        with_targets: False for prediction, where records have no labels.
        evaluation: whether the features are for evaluation rather than training.
        progress: called with the number of records done.
        cache: where features of an earlier run may be, and where new ones are kept.

    Returns:
        the features; made of records, they have these as `rows`.

    Raises:
        DataError: a record cannot be used (names its file, line and column); a corpus was made with
            another tokenizer, or the task cannot be trained on one.
    """
    if isinstance(records, StoredDocuments):
        if not isinstance(task, ReadsCorpus):
            columns = ", ".join({**task.inputs, **task.targets})
            raise DataError(
                f"{records.origin}: a prepared corpus is text alone; {task.name} needs {columns}",
                "Give it records: a .jsonl, .csv, .tsv or .parquet file.",
            )
        records.check_tokenizer(tokenizer)
        return task.stored_features(records, tokenizer, evaluation=evaluation, progress=progress)
    return record_features(
        *(task, records, tokenizer),
        with_targets=with_targets,
        evaluation=evaluation,
        progress=progress,
        cache=cache,
    )


def record_features(
    task: Preprocessor,
    records: Records,
    tokenizer: Tokenizer,
    *,
    with_targets: bool = True,
    evaluation: bool = False,
    progress: Callable[[int], None] | None = None,
    cache: FeatureCache | None = None,
) -> FeatureSet:
    """Make the features of records, as `featurize` does, in arrays."""
    # Features of an earlier run, if they would be the same.
    key = ""
    if cache is not None:
        how = [task.name, source_of(type(task)), task.feature_key(), with_targets, evaluation]
        key = cache.key(records, tokenizer, how)
        if (cached := cache.read(key)) is not None:
            return replace(cached, rows=records.rows)

    # Otherwise they are made now, some records at a time, so that progress can be shown.
    def stream() -> Iterable[Feature | Skipped | Repaired]:
        for start in range(0, len(records), CHUNK):
            rows = range(start, min(start + CHUNK, len(records)))
            if evaluation:
                yield from task.evaluation_features(records, rows, tokenizer)
            else:
                yield from task.features(records, rows, tokenizer, with_targets=with_targets)
            if progress is not None:
                progress(rows.stop)

    skipped: list[Skipped] = []
    repaired: list[Repaired] = []

    # Remarks about records are set aside on the way.
    def features_alone() -> Iterable[Feature]:
        for item in stream():
            if isinstance(item, Skipped):
                skipped.append(item)
            elif isinstance(item, Repaired):
                repaired.append(item)
            else:
                yield item

    # The lists are complete once all features have been read.
    start = time.perf_counter()
    features = FeatureSet.of(features_alone())
    features = replace(features, skipped=tuple(skipped), repaired=tuple(repaired))
    if cache is not None:
        cache.keep(key, features, time.perf_counter() - start)
    return replace(features, rows=records.rows)
