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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache as cached
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pretune.corpus.store import StoredDocuments
from pretune.data.batch import Feature, Features, FeatureSet, Repaired, Skipped
from pretune.data.cache_folder import cache_folder
from pretune.data.readers.files import read
from pretune.data.records import MAX_CHARS, Records
from pretune.errors import DataError
from pretune.tasks.base import (
    AdaptsRecords,
    Preprocessor,
    ReadsCorpus,
    ReadsStream,
    ReadsWindows,
)
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.version import __version__

#: Records that are tokenized at a time.
CHUNK = 1024
#: Prefix of the names of targets among the arrays of a cached file.
_TARGET = "target."


def read_for(
    task: Preprocessor,
    source: str | Path,
    *,
    columns: Mapping[str, str],
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int | None = None,
    with_targets: bool = True,
    kind: str | None = None,
) -> Records:
    """Read a file, a folder or a Hub dataset for a task, under the task's column names.

    `columns` maps these to the data's. Texts of more than `max_chars` characters (by default
    `longest_text(task)`) are refused as mistakes. Blank lines separate the documents of a `.txt`
    file, except for a task that reads one running text, such as a novel: there the whole file is
    one record. `kind` is what a file is read as where its name does not tell it (see `read`).

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
    )
    return adapt_records(task, records, columns, with_targets=with_targets)


def adapt_records(
    task: Preprocessor, records: Records, columns: Mapping[str, str], *, with_targets: bool = True
) -> Records:
    """Bring records into the form a task reads: `columns` maps its column names to the data's.

    Raises:
        DataError: a column that the task needs is missing.
    """
    if isinstance(task, AdaptsRecords):
        records = task.adapted(records, columns, with_targets)
    return records.mapped(columns, [*task.inputs, *(task.targets if with_targets else ())])


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
) -> Features:
    """Make the features of records, which they have as `rows`, or of a prepared corpus, on demand.

    Targets are left out for prediction, where records have no labels. `progress` is called with the
    number of records done; `cache` may have the features of an earlier run, and keeps new ones.

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
    """Make the features of records, as `featurize` does, in arrays.

    Records without text are skipped where they have targets: nothing is learned from them.
    """
    how: dict[str, Any] = {"with_targets": with_targets, "evaluation": evaluation}
    how |= {"progress": progress, "cache": cache}
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
) -> FeatureSet:
    # Features of an earlier run, if they would be the same.
    key = ""
    if cache is not None:
        how = [task.name, source_of(type(task)), task.feature_key(), with_targets, evaluation]
        key = cache.key(records, tokenizer, how)
        if (kept := cache.read(key)) is not None:
            return replace(kept, rows=records.rows)
    remarks: list[Skipped | Repaired] = []

    # Otherwise they are made now, some records at a time, so that progress can be shown.
    def stream() -> Iterable[Feature]:
        for start in range(0, len(records), CHUNK):
            rows = range(start, min(start + CHUNK, len(records)))
            if evaluation:
                items = task.evaluation_features(records, rows, tokenizer)
            else:
                items = task.features(records, rows, tokenizer, with_targets=with_targets)
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
    features = replace(
        features,
        skipped=tuple(item for item in remarks if isinstance(item, Skipped)),
        repaired=tuple(item for item in remarks if isinstance(item, Repaired)),
    )
    if cache is not None:
        cache.keep(key, features, time.perf_counter() - start)
    return replace(features, rows=records.rows)


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
        engines = [tokenizer.engine.to_str(), tokenizer.written.engine.to_str()]
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
