"""The files of a corpus as they are written: they can be cut back to any noted state.

See docs/corpus.md for the format.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pretune.corpus.encode import EncodedDocument
from pretune.errors import DataError

#: What is counted of a shard and of a corpus.
COUNTS = ("documents", "sentences", "tokens", "characters", "bytes")
#: int64 columns of `.documents.npy`: first token, characters, UTF-8 bytes.
DOCUMENT_COLUMNS = 3
TOKENS, DOCUMENTS, SENTENCES = ".tokens.bin", ".documents.npy", ".sentences.npy"


def shard_name(number: int) -> str:
    """The name of a shard (0-based), without the ends of its files."""
    return f"shard-{number:05}"


def stored_dtype(name: str) -> np.dtype[Any]:
    """uint16 or uint32 as they lie on the disk: little-endian."""
    return np.dtype(name).newbyteorder("<")


@dataclass
class Counts:
    """What lies in a shard, or in all of them."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    characters: int = 0
    bytes: int = 0


def sum_counts(shards: list[dict[str, Any]]) -> dict[str, int]:
    """The sums over shards as a manifest has them."""
    return {name: sum(shard[name] for shard in shards) for name in COUNTS}


class ShardWriter:
    """Writes documents into shards of bounded size.

    The tokens go straight into their file; the positions into raw files aside, which become `.npy`
    when the shard is full, for only then their number is known.

    Args:
        folder: where the shards are to be.
        aside: for the raw files; on the same disk.
        dtype: of the tokens.
        most: tokens of a shard. A document with more is a shard of its own.
        state: as `sync` gave it; what was written after that is removed.
    """

    def __init__(
        self,
        folder: Path,
        aside: Path,
        dtype: str,
        most: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.aside, self.dtype, self.most = folder, aside, stored_dtype(dtype), most
        self.shards: list[dict[str, Any]] = list(state["shards"]) if state else []
        self.open = Counts(**state["open"]) if state else Counts()
        folder.mkdir(parents=True, exist_ok=True)
        aside.mkdir(parents=True, exist_ok=True)
        self._cut_back()
        self._handles = self._append()

    def add(self, document: EncodedDocument) -> None:
        """Write a document."""
        length = len(document.tokens)
        if self.open.tokens and self.open.tokens + length > self.most:
            self.close_shard()
        row = [self.open.tokens, document.characters, document.bytes]
        starts = document.sentences + self.open.tokens
        tokens, documents, sentences = self._handles
        tokens.write(document.tokens.astype(self.dtype, copy=False).tobytes())
        documents.write(np.array(row, dtype="<i8").tobytes())
        sentences.write(starts.astype("<i8", copy=False).tobytes())
        self.open.documents += 1
        self.open.sentences += len(starts)
        self.open.tokens += length
        self.open.characters += document.characters
        self.open.bytes += document.bytes

    def sync(self) -> dict[str, Any]:
        """Bring everything to the disk.

        Returns:
            The state to come back to, for JSON.
        """
        for handle in self._handles:
            handle.flush()
            os.fsync(handle.fileno())
        for folder in (self.folder, self.aside):
            sync(folder)
        return {"shards": self.shards, "open": asdict(self.open)}

    def forget(self) -> None:
        """Remove what only a state before the last `sync` would need."""
        for path in self.aside.iterdir():
            if not path.name.startswith(shard_name(len(self.shards))):
                path.unlink()

    def close_shard(self) -> None:
        """Finish the shard that is open and begin the next."""
        self.sync()
        self.close()
        name = shard_name(len(self.shards))
        tokens, documents, sentences = self._paths()
        rows = np.memmap(documents, "<i8", "r").reshape(-1, DOCUMENT_COLUMNS)
        files = {
            TOKENS: tokens,
            DOCUMENTS: _save(self.folder / (name + DOCUMENTS), rows),
            SENTENCES: _save(self.folder / (name + SENTENCES), np.memmap(sentences, "<i8", "r")),
        }
        described = {end: file_entry(path) for end, path in files.items()}
        self.shards.append({"name": name, **asdict(self.open), "files": described})
        self.open = Counts()
        self._handles = self._append()

    def finish(self) -> None:
        """Finish the last shard."""
        if self.open.documents:
            self.close_shard()
        self.close()
        self._paths()[0].unlink()  # that of a shard to come, which is empty

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            handle.close()

    def _paths(self) -> tuple[Path, Path, Path]:
        name = shard_name(len(self.shards))
        return (
            self.folder / (name + TOKENS),
            self.aside / f"{name}.documents",
            self.aside / f"{name}.sentences",
        )

    def _append(self) -> list[IO[bytes]]:
        return [path.open("ab", buffering=2**20) for path in self._paths()]

    def _cut_back(self) -> None:
        """Bring the files to the state: cut those of the open shard, remove what is beyond it."""
        tokens, documents, sentences = self._paths()
        keep = {
            tokens: self.open.tokens * self.dtype.itemsize,
            documents: self.open.documents * DOCUMENT_COLUMNS * 8,
            sentences: self.open.sentences * 8,
        }
        finished = {s["name"] + end for s in self.shards for end in s["files"]}
        for path in [*self.folder.iterdir(), *self.aside.iterdir()]:
            if path.is_file() and path not in keep and path.name not in finished:
                path.unlink()
        for path, size in keep.items():
            cut_file(path, size)


def sync(path: Path) -> None:
    """Bring a file or the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cut_file(path: Path, size: int) -> None:
    """Cut a file that was appended to back to a size it had.

    Raises:
        DataError: it is shorter than that.
    """
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise DataError(
            f"{path}: damaged ({found:,} bytes, written were {size:,})",
            "Begin anew with --restart.",
        )
    if found > size:
        os.truncate(path, size)


def _save(path: Path, array: NDArray[np.int64]) -> Path:
    with path.open("wb") as handle:
        np.save(handle, array, allow_pickle=False)
        handle.flush()
        os.fsync(handle.fileno())
    return path


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as manifests have them."""
    with path.open("rb") as handle:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(handle, "sha256").hexdigest(),
        }
