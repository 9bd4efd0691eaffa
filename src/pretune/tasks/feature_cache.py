"""Features that were made before, on disk, by the hash of all that they depend on.

    $PRETUNE_CACHE/features/HASH.safetensors

`PRETUNE_CACHE` is `$XDG_CACHE_HOME/pretune` (`~/.cache/pretune`) where it is not set, and `off`
turns the cache off. Files that were not read for the longest time go first when all together are
larger than `PRETUNE_CACHE_GB` (10). The folder may be removed at any time.
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

#: Features that were made in less time are not worth a file.
WORTH_SECONDS = 2.0
_TARGET = "target."


@dataclass(frozen=True)
class FeatureCache:
    """Features by their keys.

    Attributes:
        folder: where they are.
        most_bytes: of all files together.
        worth: features that were made in fewer seconds are not kept.
    """

    folder: Path
    most_bytes: int
    worth: float = WORTH_SECONDS

    @classmethod
    def usual(cls) -> FeatureCache | None:
        """The one that the environment names; None where it is turned off."""
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
        """A SHA-256 of everything that the features are made of.

        Args:
            records: to be turned into features; all of their columns count.
            tokenizer: of the model.
            how: what else they depend on, JSON-ready.
        """
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
        """The features of that key; None where there are none, or not as they were written."""
        path = self._path(key)
        try:
            with safe_open(path, framework="numpy") as file:
                said = json.loads(file.metadata()["pretune"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            skipped = tuple(Skipped(**item) for item in said["skipped"])
            repaired = tuple(Repaired(**item) for item in said["repaired"])
            choices = None
            if "choices" in arrays:
                ends = np.cumsum(arrays["counts"])[:-1]
                parts = np.split(arrays["choices"], ends)
                choices = tuple(tuple(part.tolist()) for part in parts)
            found = FeatureSet(
                tokens=arrays["tokens"],
                starts=arrays["starts"],
                segments=arrays.get("segments"),
                targets={name: arrays[_TARGET + name] for name in said["targets"]},
                records=arrays["records"],
                truncated=said["truncated"],
                skipped=skipped,
                repaired=repaired,
                choices=choices,
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        if said["digest"] != _digest(found):
            return None
        with suppress(OSError):  # so that it is known to be in use
            os.utime(path)
        return found

    def keep(self, key: str, features: FeatureSet, seconds: float) -> None:
        """Write features; a disk that takes nothing is no reason to stop.

        Args:
            key: from `key`.
            features: to keep.
            seconds: what making them took.
        """
        if seconds < self.worth or len(features) == 0:
            return
        arrays = {"tokens": features.tokens, "starts": features.starts, "records": features.records}
        arrays |= {_TARGET + name: column for name, column in features.targets.items()}
        if features.segments is not None:
            arrays["segments"] = features.segments
        if features.choices is not None:
            counts = [len(lengths) for lengths in features.choices]
            every = [length for lengths in features.choices for length in lengths]
            arrays |= {"counts": np.array(counts), "choices": np.array(every)}
        if sum(array.nbytes for array in arrays.values()) > self.most_bytes:
            return
        said = {
            "targets": list(features.targets),  # their order is that of the fingerprint
            "truncated": features.truncated,
            "skipped": [asdict(item) for item in features.skipped],
            "repaired": [asdict(item) for item in features.repaired],
            "digest": _digest(features),
        }
        aside = self.folder / f".{key}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(whole, aside, {"pretune": json.dumps(said)})
            os.replace(aside, self._path(key))
            self._make_room()
        except (OSError, SafetensorError):
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Remove what was not read for the longest time, and what a killed process left."""
        for path in self.folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink(missing_ok=True)
        files = [(path, path.stat()) for path in self.folder.glob("*.safetensors")]
        total = sum(found.st_size for _, found in files)
        for path, found in sorted(files, key=lambda item: item[1].st_mtime):
            if total <= self.most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= found.st_size


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
