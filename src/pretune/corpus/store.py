"""Reading a prepared corpus by memory map. See docs/corpus.md for the format."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pretune.corpus.check import (
    AGAIN,
    ENDS,
    check_documents,
    check_manifest,
    check_starts,
    check_tokens,
    highest,
)
from pretune.corpus.shards import (
    DOCUMENT_COLUMNS,
    DOCUMENTS,
    SENTENCES,
    TOKENS,
    file_entry,
    stored_dtype,
)
from pretune.data.arrays import Array
from pretune.errors import DataError

FORMAT, VERSION = "pretune-corpus", 1
CORPUS_MANIFEST = "corpus.json"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class _Shard:
    """The maps of one shard."""

    path: Path  # of the tokens
    before: int  # tokens of the shards before
    tokens: Array  # [T] uint16 or uint32
    documents: Array  # [D, 3] int64
    sentences: Array  # [S] int64

    def check(self) -> None:
        """Check where documents and sentences begin."""
        stem = self.path.name.removesuffix(TOKENS)
        ours, theirs = (self.path.with_name(stem + end) for end in (DOCUMENTS, SENTENCES))
        starts = self.documents[:, 0]
        check_starts(ours, starts, len(self.tokens))
        check_starts(theirs, self.sentences, len(self.tokens))
        check_documents(theirs, starts, self.sentences)


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. Its files are mapped, not read: what is not looked at takes no memory.

    Attributes:
        folder: where it is.
        manifest: its `corpus.json`.
    """

    folder: Path
    manifest: Mapping[str, Any]
    _shards: list[_Shard] = field(repr=False)
    _ends: Array = field(repr=False)  # [shards] documents up to and with each shard

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Corpus:
        """Open a corpus.

        Args:
            folder: as `prepare` made it, or its `validation` folder.
            verify: read every byte, compare the SHA-256, and look for tokens that the vocabulary
                has not; else sizes are compared, and where documents and sentences begin.

        Raises:
            DataError: it is none, or damaged; names the file.
        """
        corpus = _opened(Path(folder), verify=verify)
        for shard in corpus._shards:
            shard.check()
        if verify:
            corpus.check_tokens(corpus.vocab_size)
        return corpus

    def check_tokens(self, vocab_size: int) -> None:
        """Check that a vocabulary has all tokens. They are read for it, the first time.

        Raises:
            DataError: it has not; names the file.
        """
        for shard, found in zip(self._shards, self._highest, strict=True):
            check_tokens(shard.path, found, vocab_size)

    @cached_property
    def _highest(self) -> list[int]:
        return [highest(shard.path, shard.tokens.dtype) for shard in self._shards]

    def __len__(self) -> int:
        """Documents."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> Any:
        # A map would be copied whole into another process; there, the files are mapped again.
        return _opened, (self.folder,)

    def document(self, index: int) -> Array:
        """`[T]` uint16 or uint32: the tokens of a document, a read-only view of the file.

        Raises:
            IndexError: there is no such document; negative numbers count from none.
        """
        shard, start, stop, _ = self._find(index)
        return shard.tokens[start:stop]

    def bounds(self, index: int) -> tuple[int, int]:
        """The first token of a document, counted through all shards, and one past its last."""
        shard, start, stop, _ = self._find(index)
        return shard.before + start, shard.before + stop

    def sentence_bounds(self, index: int) -> Array:
        """`[sentences + 1]` the first token of each sentence of a document, and one past the last.

        Counted through all shards, as `bounds`.
        """
        shard, start, stop, _ = self._find(index)
        first, last = np.searchsorted(shard.sentences, [start, stop])
        return np.append(shard.sentences[first:last], stop) + shard.before

    def read(self, start: int, stop: int) -> Array:
        """Tokens that lie within one document, counted through all shards: a view of the file."""
        number = bisect_right(self._shards, start, key=lambda shard: shard.before) - 1
        shard = self._shards[number]
        return shard.tokens[start - shard.before : stop - shard.before]

    def sentences(self, index: int) -> list[Array]:
        """The tokens of a document, sentence by sentence; together they are all of its tokens."""
        return [self.read(a, b) for a, b in pairwise(self.sentence_bounds(index).tolist())]

    def size(self, index: int) -> tuple[int, int]:
        """The characters and the UTF-8 bytes of the text of a document."""
        shard, _, _, row = self._find(index)
        return int(shard.documents[row, 1]), int(shard.documents[row, 2])

    def lengths(self) -> Array:
        """`[documents]` int64: how many tokens each has. This one is in memory."""
        parts = [
            np.diff(np.append(shard.documents[:, 0], len(shard.tokens))) for shard in self._shards
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def _find(self, index: int) -> tuple[_Shard, int, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of a corpus of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        row = index - (int(self._ends[number - 1]) if number else 0)
        start = int(shard.documents[row, 0])
        last = row + 1 == len(shard.documents)
        return shard, start, len(shard.tokens) if last else int(shard.documents[row + 1, 0]), row

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.manifest["totals"]["tokens"])

    @property
    def chars(self) -> int:
        """Characters of all documents."""
        return int(self.manifest["totals"]["characters"])

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return int(self.manifest["totals"]["bytes"])

    @property
    def vocab_size(self) -> int:
        """One more than the highest id of the tokenizer."""
        return int(self.manifest["vocab_size"])

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer that made it."""
        return self.folder / TOKENIZER

    def fingerprint(self) -> str:
        """A SHA-256 over the tokenizer's and those of all files: the same for the same tokens."""
        described = [self.manifest["tokenizer"]["sha256"]]
        described += [
            shard["files"][end]["sha256"] for shard in self.manifest["shards"] for end in ENDS
        ]
        return hashlib.sha256("\n".join(described).encode("ascii")).hexdigest()


def _opened(folder: Path, verify: bool = False) -> Corpus:
    """A corpus whose positions are not looked at."""
    manifest = _read_manifest(folder / CORPUS_MANIFEST)
    shards: list[_Shard] = []
    before = 0
    for shard in manifest["shards"]:
        shards.append(_open_shard(folder, manifest, shard, before, verify))
        before += shard["tokens"]
    fingerprint = manifest["tokenizer"]["sha256"]
    path = folder / TOKENIZER / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: missing", AGAIN)
    if file_entry(path)["sha256"] != fingerprint:
        raise DataError(f"{path}: not the tokenizer that made this corpus", AGAIN)
    ends = np.cumsum([len(shard.documents) for shard in shards], dtype=np.int64)
    return Corpus(folder, manifest, shards, ends)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{path.parent}: no corpus here (no {CORPUS_MANIFEST})",
            f"Make one: pretune prepare TEXT --tokenizer FOLDER --output {path.parent}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})", AGAIN) from None
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise DataError(
                f"{path}: format {manifest['format']!r}, version {manifest['version']!r}; "
                f"this is for {FORMAT!r}, version {VERSION}",
                "Prepare it with this version of pretune.",
            )
        check_manifest(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})", AGAIN) from None
    return dict(manifest)


def _open_shard(
    folder: Path, manifest: Mapping[str, Any], shard: Mapping[str, Any], before: int, verify: bool
) -> _Shard:
    dtype = stored_dtype(manifest["dtype"])
    paths = [folder / (shard["name"] + end) for end in ENDS]
    sizes = [shard["tokens"] * dtype.itemsize, None, None]
    for path, end, size in zip(paths, ENDS, sizes, strict=True):
        described = shard["files"][end]
        wanted = described["size"] if size is None else size
        try:
            found = path.stat().st_size
            if found != wanted:
                raise DataError(
                    f"{path}: damaged ({found:,} bytes, written were {wanted:,})", AGAIN
                )
            if verify and file_entry(path)["sha256"] != described["sha256"]:
                raise DataError(
                    f"{path}: damaged (its SHA-256 is not that of what was written)", AGAIN
                )
        except FileNotFoundError:
            raise DataError(f"{path}: missing", AGAIN) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})", AGAIN) from None
    return _Shard(
        paths[0],
        before,
        np.memmap(paths[0], dtype, "r"),
        _positions(paths[1], (shard["documents"], DOCUMENT_COLUMNS)),
        _positions(paths[2], (shard["sentences"],)),
    )


def _positions(path: Path, shape: tuple[int, ...]) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, TypeError, KeyError, SyntaxError) as error:
        raise DataError(f"{path}: damaged ({error})", AGAIN) from None
    if array.shape != shape or array.dtype != np.dtype("<i8"):
        raise DataError(
            f"{path}: damaged (an array {array.dtype} {array.shape}, written was int64 {shape})",
            AGAIN,
        )
    return array
