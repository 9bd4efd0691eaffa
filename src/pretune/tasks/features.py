"""From files to features: read for a task, then tokenized or taken from a cache on disk.

A corpus gives its features on demand. Features of records are cached, by a hash of everything that
they depend on:

    $PRETUNE_CACHE/features/HASH.safetensors

Without `PRETUNE_CACHE` the folder is `$XDG_CACHE_HOME/pretune` (`~/.cache/pretune`); `off` turns
the cache off. Once the files exceed `PRETUNE_CACHE_GB` (10), those that have not been read for the
longest time are removed. The folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cache as cached
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pretune.corpus.store import StoredDocuments
from pretune.data.bad_records import LEAVE_OUT, BadRecords, Errors
from pretune.data.batch import Feature, Features, FeatureSet, Repaired, Skipped
from pretune.data.columns import guess_columns, guess_note, likely_columns
from pretune.data.readers.files import read, read_parts
from pretune.data.readers.in_memory import Table
from pretune.data.records import MAX_CHARS, ColumnNames, Records
from pretune.errors import DataError
from pretune.storage.cache_folder import cache_folder
from pretune.tasks.base import (
    AdaptsRecords,
    Preprocessor,
    ReadsCorpus,
    ReadsStream,
    ReadsWindows,
)
from pretune.text.byte_stream import OnBytes
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.version import __version__

#: Records that are tokenized at a time.
CHUNK = 1024
#: Prefix of the names of targets among the arrays of a cached file.
_TARGET = "target."


def read_for(
    task: Preprocessor,
    source: str | Path | Table,
    *,
    columns: Mapping[str, str],
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int | None = None,
    with_targets: bool = True,
    kind: str | None = None,
    first_look: bool = False,
) -> Records:
    """Read a file, a folder, a Hub dataset or a table in memory for a task.

    The columns of what is returned have the task's names.

    `columns` maps these to the data's. Texts of more than `max_chars` characters (by default
    `longest_text(task)`) are refused as mistakes. Blank lines separate the documents of a `.txt`
    file, except for a task that reads one running text, such as a novel: there the whole file is
    one record. `kind` is what a file is read as where its name does not tell it (see `read`). At a
    `first_look` columns that no name tells are guessed, with a note, and records that cannot be
    read are left out and counted (`Records.bad`).

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    records = read(
        source,
        encoding=encoding,
        quoting=quoting,
        max_chars=longest_text(task) if max_chars is None else max_chars,
        text_unit="file" if isinstance(task, ReadsStream) else "blank-line",
        columns={**{name: name for name in known_columns(task)}, **columns},
        kind=kind,
        keep_bad=first_look,
    )
    if first_look and not isinstance(task, AdaptsRecords):
        needed = [*task.inputs, *(task.targets if with_targets else ())]
        guessed = guess_columns(records, needed, columns)
        if guessed:
            records = records.noting(guess_note(records, guessed))
            names = copy(columns) if isinstance(columns, ColumnNames) else dict(columns)
            names.update(guessed)
            columns = names
        elif lacking := [n for n in needed if columns.get(n, n) not in records.columns]:
            with _naming_candidates(records, lacking):
                return adapt_records(
                    task, records, columns, with_targets=with_targets, keep_bad=True
                )
    return adapt_records(task, records, columns, with_targets=with_targets, keep_bad=first_look)


@contextmanager
def _naming_candidates(records: Records, lacking: Sequence[str]) -> Iterator[None]:
    """Context whose errors say which columns may be meant by names that the records lack."""
    try:
        yield
    except DataError as error:
        likely = likely_columns(records, lacking)
        raise DataError(error.message, "\n  ".join(filter(None, (error.hint, *likely)))) from None


def read_parts_for(
    task: Preprocessor,
    source: str | Path,
    size: int,
    *,
    columns: Mapping[str, str],
    encoding: str = "utf-8",
    quoting: str = "auto",
    kind: str | None = None,
    on_bytes: OnBytes | None = None,
) -> Iterator[Records]:
    """Read what a task is to answer, as `read_for` does, `size` records at a time (`read_parts`).

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    parts = read_parts(
        *(source, size),
        encoding=encoding,
        quoting=quoting,
        max_chars=longest_text(task),
        text_unit="file" if isinstance(task, ReadsStream) else "blank-line",
        columns={**{name: name for name in known_columns(task)}, **columns},
        kind=kind,
        on_bytes=on_bytes,
    )
    for part in parts:
        yield adapt_records(task, part, columns, with_targets=False)


def adapt_records(
    task: Preprocessor,
    records: Records,
    columns: Mapping[str, str],
    *,
    with_targets: bool = True,
    keep_bad: bool = False,
) -> Records:
    """Bring records into the form a task reads: `columns` maps its column names to the data's.

    With `keep_bad` records that have none of a task's formats are left out and counted.

    Raises:
        DataError: a column that the task needs is missing.
    """
    if isinstance(task, AdaptsRecords):
        try:
            records = replace(task.adapted(records, columns, with_targets), bad=records.bad)
        except DataError as error:
            if not keep_bad or not error.message.startswith(f"{records.origin}, "):
                raise
            records = _adaptable(task, records, columns, with_targets)
    return records.mapped(columns, [*task.inputs, *(task.targets if with_targets else ())])


def _adaptable(
    task: AdaptsRecords, records: Records, columns: Mapping[str, str], with_targets: bool
) -> Records:
    """Adapt the records that a task can adapt, and count the others.

    Raises:
        DataError: it can adapt none of them.
    """
    bad, good = records.bad or BadRecords(records.origin), []
    for row in range(len(records)):
        try:
            task.adapted(records.take([row]), columns, with_targets)
        except DataError as error:
            bad.add(error)
        else:
            good.append(row)
    if not good:
        raise bad.error(len(records))
    return replace(task.adapted(records.take(good), columns, with_targets), bad=bad)


def own_columns(task: Preprocessor) -> tuple[str, ...]:
    """All columns that a task reads."""
    return tuple({**task.inputs, **task.targets, **task.optional})


def known_columns(task: Preprocessor) -> tuple[str, ...]:
    """The columns that a task reads, and those that it makes them of."""
    return (*own_columns(task), *(task.sources if isinstance(task, AdaptsRecords) else ()))


def longest_text(task: Preprocessor) -> int:
    """Return the length in characters from which a text is taken for a mistake."""
    # Any book will do where a long text is read as several sequences and nothing is cut off.
    return 100_000_000 if isinstance(task, ReadsWindows) else MAX_CHARS


def featurize(
    task: Preprocessor,
    records: Records | StoredDocuments,
    tokenizer: Tokenizer,
    *,
    with_targets: bool = True,
    evaluation: bool = False,
    progress: Callable[[int], None] | None = None,
    cache: FeatureCache | None = None,
    errors: Errors | None = None,
) -> Features:
    """Make the features of records, which they have as `rows`, or of a prepared corpus, on demand.

    Targets are left out for prediction, where records have no labels. `progress` is called with the
    number of records done; `cache` may have the features of an earlier run, and keeps new ones.
    `errors` says what is done about records that cannot be used: with `skip` they are skipped, with
    `stop` all of them are one error, and with None the first is an error.

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
        errors=errors,
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
    errors: Errors | None = None,
) -> FeatureSet:
    """Make the features of records, as `featurize` does, in arrays.

    Records without text are skipped where they have targets: nothing is learned from them.
    """
    how: dict[str, Any] = {"with_targets": with_targets, "evaluation": evaluation}
    how |= {"progress": progress, "cache": cache, "errors": errors}
    empty = [with_targets and task.without_text(row, with_targets=True) for row in records.rows]
    if not any(empty):
        return _record_features(task, records, tokenizer, **how)
    # The features of the others, with their places among all records.
    others = np.flatnonzero(~np.array(empty))
    features = _record_features(task, records.take(others.tolist()), tokenizer, **how)
    skipped = [Skipped(row, "an empty text") for row in np.flatnonzero(empty).tolist()]
    skipped += [replace(item, record=int(others[item.record])) for item in features.skipped]
    return replace(
        features,
        records=others[features.records],
        skipped=tuple(sorted(skipped, key=lambda item: item.record)),
        repaired=tuple(replace(x, record=int(others[x.record])) for x in features.repaired),
        rows=records.rows,
    )


def _record_features(
    task: Preprocessor,
    records: Records,
    tokenizer: Tokenizer,
    *,
    with_targets: bool,
    evaluation: bool,
    progress: Callable[[int], None] | None,
    cache: FeatureCache | None,
    errors: Errors | None,
) -> FeatureSet:
    # Features of an earlier run, if they would be the same.
    key = ""
    if cache is not None:
        how = [task.name, source_of(type(task)), task.feature_key(), with_targets, evaluation]
        key = cache.key(records, tokenizer, [*how, *(["skip"] if errors == "skip" else [])])
        if (kept := cache.read(key)) is not None:
            return replace(kept, rows=records.rows)
    remarks: list[Skipped | Repaired] = []
    bad = BadRecords(records.origin)

    def made(rows: range) -> Iterable[Feature | Skipped | Repaired]:
        if evaluation:
            return task.evaluation_features(records, rows, tokenizer)
        return task.features(records, rows, tokenizer, with_targets=with_targets)

    # Otherwise they are made now, some records at a time, so that progress can be shown.
    def stream() -> Iterable[Feature]:
        for start in range(0, len(records), CHUNK):
            rows = range(start, min(start + CHUNK, len(records)))
            # One running text is not made of records that could be left out.
            alone = errors is None or isinstance(task, ReadsStream)
            items = made(rows) if alone else _of_good_records(records, rows, made, bad)
            # Remarks about records are set aside on the way.
            for item in items:
                if isinstance(item, Skipped | Repaired):
                    remarks.append(item)
                else:
                    yield item
            if progress is not None:
                progress(rows.stop)

    # The remarks are complete once all features have been read.
    start = time.perf_counter()
    features = FeatureSet.of(stream())
    if bad.count and (errors == "stop" or not len(features)):
        raise bad.error(len(records), *([LEAVE_OUT] if len(features) else []))
    features = replace(
        features,
        skipped=tuple(item for item in remarks if isinstance(item, Skipped)),
        repaired=tuple(item for item in remarks if isinstance(item, Repaired)),
    )
    if cache is not None:
        cache.keep(key, features, time.perf_counter() - start)
    return replace(features, rows=records.rows)


def _of_good_records(
    records: Records,
    rows: range,
    made: Callable[[range], Iterable[Feature | Skipped | Repaired]],
    bad: BadRecords,
) -> list[Feature | Skipped | Repaired]:
    """Return what is made of some records; those that cannot be used are `Skipped` and counted.

    Args:
        records: the data set.
        rows: which of its records.
        made: makes the features of some rows.
        bad: takes what is wrong.
    """
    try:
        return list(made(rows))
    except DataError:
        pass
    # Which of them they are shows one by one.
    items: list[Feature | Skipped | Repaired] = []
    for row in rows:
        try:
            items += made(range(row, row + 1))
        except DataError as error:
            if not error.message.startswith(f"{records.origin}, "):
                error = DataError(f"{records.where(row)}: {error.message}", error.hint)
            bad.add(error)
            items.append(Skipped(row, error.message))
    return items


@dataclass(frozen=True)
class FeatureCache:
    """A folder with features."""

    folder: Path  # created when needed
    max_bytes: int  # of all files together
    worth: float = 2.0  # features that took fewer seconds are not kept

    @classmethod
    def usual(cls) -> FeatureCache | None:
        """Return the cache that the environment asks for; None where it is turned off."""
        folder = cache_folder()
        if folder is None:
            return None
        try:
            gigabytes = float(os.environ.get("PRETUNE_CACHE_GB", ""))
        except ValueError:
            gigabytes = 10.0
        return cls(folder / "features", round(gigabytes * 1e9))

    def key(self, records: Records, tokenizer: Tokenizer, how: Any) -> str:
        """Hash everything that the features depend on; `how` is JSON-ready."""
        # Code, options and tokenizer first, then every value of every record.
        digest = hashlib.sha256()
        known = {name: list(names) for name, names in records.categories.items()}
        fixed = [[__version__, _sources()], how, known, records.max_chars, tokenizer.special]
        engines = [*tokenizer.rules, *tokenizer.written.rules]
        for part in (json.dumps(fixed, sort_keys=True), *engines):
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        for row in records.rows:
            digest.update(json.dumps(row, default=repr).encode() + b"\n")
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def read(self, key: str) -> FeatureSet | None:
        """Return the features with this key; None if there are none, or the file is damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="numpy") as file:
                notes = json.loads(file.metadata()["pretune"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # A feature of several sequences has their lengths; features differ in how many.
            choices = None
            if "choices" in arrays:
                parts = np.split(arrays["choices"], np.cumsum(arrays["counts"])[:-1])
                choices = tuple(tuple(part.tolist()) for part in parts)
            features = FeatureSet(
                tokens=arrays["tokens"],
                starts=arrays["starts"],
                segments=arrays.get("segments"),
                targets={name: arrays[_TARGET + name] for name in notes["targets"]},
                records=arrays["records"],
                truncated=notes["truncated"],
                skipped=tuple(Skipped(**item) for item in notes["skipped"]),
                repaired=tuple(Repaired(**item) for item in notes["repaired"]),
                choices=choices,
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        # Read without an error, but not what was written.
        if notes["digest"] != _digest(features):
            return None
        # The time of the last use decides which files are removed first.
        with suppress(OSError):
            os.utime(path)
        return features

    def keep(self, key: str, features: FeatureSet, seconds: float) -> None:
        """Write features that took some seconds to make, if they are worth a file.

        A disk that refuses is ignored.
        """
        if seconds < self.worth or len(features) == 0:
            return
        # Everything of a fixed type as arrays, the rest as JSON among the file's metadata.
        arrays = {"tokens": features.tokens, "starts": features.starts, "records": features.records}
        arrays |= {_TARGET + name: column for name, column in features.targets.items()}
        if features.segments is not None:
            arrays["segments"] = features.segments
        if features.choices is not None:
            arrays["counts"] = np.array([len(lengths) for lengths in features.choices])
            arrays["choices"] = np.array([n for lengths in features.choices for n in lengths])
        if sum(array.nbytes for array in arrays.values()) > self.max_bytes:
            return
        notes = {
            "targets": list(features.targets),  # the fingerprint depends on their order
            "truncated": features.truncated,
            "skipped": [asdict(item) for item in features.skipped],
            "repaired": [asdict(item) for item in features.repaired],
            "digest": _digest(features),
        }
        # Written beside its place and renamed: no other process reads half a file.
        aside = self.folder / f".{key}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(whole, aside, {"pretune": json.dumps(notes)})
            os.replace(aside, self._path(key))
            self._make_room()
        except (OSError, SafetensorError):
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove leftovers of killed processes, and the files that were not read for longest."""
        # A file that is being written is younger than an hour.
        for path in self.folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink(missing_ok=True)
        files = [(path, path.stat()) for path in self.folder.glob("*.safetensors")]
        total = sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda item: item[1].st_mtime):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size


def source_files() -> list[Path]:
    """List the files of pretune whose code decides what features are."""
    package = Path(__file__).parents[1]
    rooms = ("text", "tokenizers", "data", "corpus", "tasks")
    return sorted(path for room in rooms for path in (package / room).rglob("*.py"))


@cached
def _sources() -> str:
    """Hash the code that makes features: it may change without a new version."""
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def source_of(kind: type) -> str:
    """Hash the file that defines a task outside pretune; empty for built-in tasks."""
    if kind.__module__.startswith("pretune."):
        return ""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else kind.__module__


def _digest(features: FeatureSet) -> str:
    own = hashlib.sha256(np.ascontiguousarray(features.records).tobytes()).hexdigest()
    return f"{features.fingerprint()} {own}"
