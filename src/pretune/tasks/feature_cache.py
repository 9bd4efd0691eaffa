"""A cache of features on disk, by a hash of everything that they depend on.

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
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pretune import __version__
from pretune.data.batch import FeatureSet, Repaired, Skipped
from pretune.data.records import Records
from pretune.tokenizers.tokenizer import Tokenizer

#: Features that took less time are not worth a file.
WORTH_SECONDS = 2.0
#: Prefix of the names of targets among the arrays of a file.
_TARGET = "target."


@dataclass(frozen=True)
class FeatureCache:
    """A folder with features.

    Attributes:
        folder: where the files are; it is created when needed.
        max_bytes: the maximum size of all files together.
        worth: features that took fewer seconds are not kept.
    """

    folder: Path
    max_bytes: int
    worth: float = WORTH_SECONDS

    @classmethod
    def usual(cls) -> FeatureCache | None:
        """Return the cache that the environment asks for; None where it is turned off."""
        named = os.environ.get("PRETUNE_CACHE")
        if named == "off":
            return None
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(named) if named else Path(base) / "pretune"
        try:
            gigabytes = float(os.environ.get("PRETUNE_CACHE_GB", ""))
        except ValueError:
            gigabytes = 10.0
        return cls(folder / "features", round(gigabytes * 1e9))

    def key(self, records: Records, tokenizer: Tokenizer, how: Any) -> str:
        """Hash everything that the features depend on.

        Args:
            records: the data set, with all of its columns.
            tokenizer: of the model.
            how: what else the features depend on, JSON-ready.
        """
        # Code, options and tokenizer first, then every value of every record.
        digest = hashlib.sha256()
        known = {name: list(names) for name, names in records.categories.items()}
        made_by = [__version__, _sources()]
        fixed = [made_by, how, known, records.max_chars, tokenizer.special]
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
                ends = np.cumsum(arrays["counts"])[:-1]
                parts = np.split(arrays["choices"], ends)
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
        """Write features, unless they are not worth a file; a disk that refuses is ignored.

        Args:
            key: from `key`.
            features: to keep.
            seconds: how long it took to make them.
        """
        if seconds < self.worth or len(features) == 0:
            return
        # Everything of a fixed type as arrays, the rest as JSON among the file's metadata.
        arrays = {"tokens": features.tokens, "starts": features.starts, "records": features.records}
        arrays |= {_TARGET + name: column for name, column in features.targets.items()}
        if features.segments is not None:
            arrays["segments"] = features.segments
        if features.choices is not None:
            counts = [len(lengths) for lengths in features.choices]
            lengths = [length for lengths in features.choices for length in lengths]
            arrays |= {"counts": np.array(counts), "choices": np.array(lengths)}
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


@cache
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
