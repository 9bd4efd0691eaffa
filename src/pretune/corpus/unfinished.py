"""The files of an unfinished corpus, which survive a kill.

They are in a folder beside the corpus-to-be, which gets its name only when it is complete. All
files only grow, so they can be cut back to the state that the journal noted last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from pretune.checkpoints.atomic_io import atomic_text
from pretune.corpus.dedupe import DIGEST_BYTES, PERMUTATIONS, Duplicates, Signature
from pretune.corpus.encode import EncodedDocument
from pretune.corpus.store import (
    COUNTS,
    DOCUMENT_COLUMNS,
    DOCUMENTS,
    SENTENCES,
    TOKENS,
    file_entry,
    stored_dtype,
)
from pretune.data.arrays import Array
from pretune.errors import DataError
from pretune.host import sync_path, take_lock

_SIGNATURE_BYTES = 4 * PERMUTATIONS


class Journal:
    """The folder of an unfinished corpus, and the note of how far the work has come.

    In it, the folder `out` becomes the corpus.
    """

    def __init__(self, output: Path) -> None:
        if not output.name:
            raise DataError(f"{output}: no folder can be made there", "Choose another --output.")
        self.folder = output.with_name(f".{output.name}.unfinished")
        self.out = self.folder / "out"
        self.path = self.folder / "journal.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing this corpus; the lock ends with this process."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "lock").open("w")
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror})", "Choose another --output."
            ) from None
        with handle:
            if not take_lock(handle):
                raise DataError(
                    f"{self.folder}: this corpus is being prepared already",
                    "Wait for it, or choose another --output.",
                )
            try:
                yield
            finally:
                # Without a journal nothing that was written can be used again.
                if not self.path.exists():
                    shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove everything that was done."""
        self.path.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def read(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The noted state of the work on this very corpus; None where nothing is done yet.

        Raises:
            DataError: the work was on a corpus of another identity, or the journal cannot be read.
        """
        if not self.path.exists():
            self.clear()
            return None
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
            before, state = dict(noted["identity"].items()), dict(noted["state"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(f"{self.path}: damaged", "Begin anew with --restart.") from None
        # Both as JSON, where tuples are lists.
        now = json.loads(json.dumps(identity))
        if before != now:
            other = next((key for key in now if before.get(key) != now[key]), "version")
            raise DataError(
                f"{self.folder}: an unfinished corpus with another {other}",
                "Give the same command again to go on with that one, or begin anew with --restart.",
            )
        return state

    def write(self, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Note the state of the work; the files it is about must be synced already."""
        atomic_text(self.path, json.dumps({"identity": identity, "state": state}))

    def publish(self, output: Path) -> None:
        """Give the finished corpus its name."""
        # A kill leaves what was being written under another name.
        for path in self.out.rglob(".*.tmp"):
            path.unlink()
        # Everything is on the disk before the name appears.
        for path in [*self.out.rglob("*"), self.out]:
            sync_path(path)
        os.rename(self.out, output)
        sync_path(output.parent)
        self.path.unlink(missing_ok=True)


class KeptDocuments:
    """The digests and signatures of kept documents on the disk, to know them after a kill.

    `duplicates` learns the `count` documents that were kept before.
    """

    def __init__(self, folder: Path, duplicates: Duplicates, count: int) -> None:
        self.count = count
        near = duplicates.near is not None
        paths = folder / "digests.bin", folder / "signatures.bin"
        for path, size in zip(paths, (DIGEST_BYTES, _SIGNATURE_BYTES if near else 0), strict=True):
            _cut_file(path, count * size)
        keys, values = self._handles = [path.open("a+b") for path in paths]
        keys.seek(0)
        values.seek(0)
        for _ in range(count):
            key, raw = keys.read(DIGEST_BYTES), values.read(_SIGNATURE_BYTES)
            duplicates.remember(key, np.frombuffer(raw, "<u4") if near else None)

    def add(self, key: bytes, values: Signature | None) -> None:
        """Append a kept document."""
        self._handles[0].write(key)
        if values is not None:
            self._handles[1].write(values.astype("<u4", copy=False).tobytes())
        self.count += 1

    def sync(self) -> int:
        """Flush everything to the disk; return the number of documents there."""
        _sync_handles(self._handles)
        return self.count

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            handle.close()


class ShardWriter:
    """Writes documents into shards of at most `limit` tokens; a longer document has its own.

    Tokens go straight into their file. Positions go into raw files `aside`, on the same disk, which
    become `.npy` when the shard is full, because only then their number is known. A `state` is a
    result of `sync`, to go on from; what was written after it is removed.
    """

    def __init__(
        self,
        folder: Path,
        aside: Path,
        dtype: str,
        limit: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.aside, self.dtype, self.limit = folder, aside, stored_dtype(dtype), limit
        self.shards: list[dict[str, Any]] = list(state["shards"]) if state else []
        # What the open shard holds.
        self.open: dict[str, int] = dict(state["open"]) if state else dict.fromkeys(COUNTS, 0)
        folder.mkdir(parents=True, exist_ok=True)
        aside.mkdir(parents=True, exist_ok=True)
        self._cut_back()
        self._handles = self._append()

    def add(self, document: EncodedDocument) -> None:
        """Append a document, to the next shard if this one has no room for it."""
        length = len(document.tokens)
        if self.open["tokens"] and self.open["tokens"] + length > self.limit:
            self.close_shard()
        # Positions count from the beginning of the shard.
        row = [self.open["tokens"], document.characters, document.bytes]
        starts = document.sentences + self.open["tokens"]
        tokens, documents, sentences = self._handles
        tokens.write(document.tokens.astype(self.dtype, copy=False).tobytes())
        documents.write(np.array(row, dtype="<i8").tobytes())
        sentences.write(starts.astype("<i8", copy=False).tobytes())
        added = (1, len(starts), length, document.characters, document.bytes)
        for name, count in zip(COUNTS, added, strict=True):
            self.open[name] += count

    def sync(self) -> dict[str, Any]:
        """Flush everything to the disk; return the state to come back to, for JSON."""
        _sync_handles(self._handles)
        for folder in (self.folder, self.aside):
            sync_path(folder)
        return {"shards": self.shards, "open": self.open}

    def forget(self) -> None:
        """Remove the files that only states before the last `sync` would need."""
        for path in self.aside.iterdir():
            if not path.name.startswith(shard_name(len(self.shards))):
                path.unlink()

    def close_shard(self) -> None:
        """Finish the open shard and begin the next."""
        self.sync()
        self.close()
        # Now the number of positions is known, which the header of a .npy file needs.
        name = shard_name(len(self.shards))
        tokens, documents, sentences = self._paths()
        rows = np.memmap(documents, "<i8", "r").reshape(-1, DOCUMENT_COLUMNS)
        files = {
            TOKENS: tokens,
            DOCUMENTS: _save(self.folder / (name + DOCUMENTS), rows),
            SENTENCES: _save(self.folder / (name + SENTENCES), np.memmap(sentences, "<i8", "r")),
        }
        entries = {end: file_entry(path) for end, path in files.items()}
        self.shards.append({"name": name, **self.open, "files": entries})
        self.open = dict.fromkeys(COUNTS, 0)
        self._handles = self._append()

    def finish(self) -> None:
        """Finish the last shard."""
        if self.open["documents"]:
            self.close_shard()
        self.close()
        self._paths()[0].unlink()  # the file of the next shard, which is empty

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            handle.close()

    def _paths(self) -> tuple[Path, Path, Path]:
        """The growing files of the open shard: tokens, and raw positions."""
        name = shard_name(len(self.shards))
        return (
            self.folder / (name + TOKENS),
            self.aside / f"{name}.documents",
            self.aside / f"{name}.sentences",
        )

    def _append(self) -> list[IO[bytes]]:
        return [path.open("ab", buffering=2**20) for path in self._paths()]

    def _cut_back(self) -> None:
        """Bring the files to the state: cut the open shard, remove everything later."""
        tokens, documents, sentences = self._paths()
        keep = {
            tokens: self.open["tokens"] * self.dtype.itemsize,
            documents: self.open["documents"] * DOCUMENT_COLUMNS * 8,
            sentences: self.open["sentences"] * 8,
        }
        finished = {s["name"] + end for s in self.shards for end in s["files"]}
        for path in [*self.folder.iterdir(), *self.aside.iterdir()]:
            if path.is_file() and path not in keep and path.name not in finished:
                path.unlink()
        for path, size in keep.items():
            _cut_file(path, size)


def shard_name(number: int) -> str:
    """The name of a shard, by its number from 0."""
    return f"shard-{number:05}"


def _sync_handles(handles: list[Any]) -> None:
    for handle in handles:
        handle.flush()
        os.fsync(handle.fileno())


def _cut_file(path: Path, size: int) -> None:
    """Cut a file back to an earlier size; a shorter one is a DataError."""
    actual = path.stat().st_size if path.exists() else 0
    if actual < size:
        raise DataError(
            f"{path}: damaged ({actual:,} bytes, written were {size:,})",
            "Begin anew with --restart.",
        )
    if actual > size:
        os.truncate(path, size)


def _save(path: Path, array: Array) -> Path:
    with path.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
        _sync_handles([handle])
    return path
