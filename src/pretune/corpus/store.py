"""Reading a prepared corpus by memory map. See docs/corpus.md for the format.

A corpus may come from a stranger, with checksums that fit its damage: what a manifest and the
positions claim is checked before anything relies on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from pretune.data.arrays import Array
from pretune.errors import DataError
from pretune.storage.object_store import is_url, local_folder, look_up
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

FORMAT, VERSION = "pretune-corpus", 1
CORPUS_MANIFEST = "corpus.json"
TOKENIZER = "tokenizer"
#: The folder in a corpus with the documents that were held back; it is a corpus, too.
VALIDATION_SPLIT = "validation"

#: What is counted in a shard and in a corpus.
COUNTS = ("documents", "sentences", "tokens", "characters", "bytes")
#: int64 columns of `.documents.npy`: first token, characters, UTF-8 bytes.
DOCUMENT_COLUMNS = 3
#: Endings of the three files of a shard.
TOKENS, DOCUMENTS, SENTENCES = ".tokens.bin", ".documents.npy", ".sentences.npy"
ENDS = (TOKENS, DOCUMENTS, SENTENCES)

AGAIN = "Copy the corpus again, or prepare it anew."
#: Values checked at a time.
_CHUNK = 1 << 22


def stored_dtype(name: str) -> np.dtype[Any]:
    """uint16 or uint32 as it is stored: little-endian."""
    return np.dtype(name).newbyteorder("<")


def sum_counts(shards: list[dict[str, Any]]) -> dict[str, int]:
    """The sums over shards, as a manifest holds them."""
    return {name: sum(shard[name] for shard in shards) for name in COUNTS}


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as a manifest holds them."""
    with path.open("rb") as handle:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(handle, "sha256").hexdigest(),
        }


@dataclass(frozen=True)
class Shard:
    """A shard, whose files are mapped into memory."""

    path: Path  # of the tokens
    before: int  # tokens of the shards before
    tokens: Array  # [T] uint16 or uint32
    documents: Array  # [D, 3] int64
    sentences: Array  # [S] int64

    def check(self) -> None:
        """Check where documents and sentences begin; a DataError names the file that is damaged."""
        stem, total = self.path.name.removesuffix(TOKENS), len(self.tokens)
        paths = [self.path.with_name(stem + end) for end in (DOCUMENTS, SENTENCES)]
        begins = self.documents[:, 0]
        for path, starts in zip(paths, (begins, self.sentences), strict=True):
            # Each part overlaps the one before by a value, as starts have to rise between parts
            # too.
            edges = pairwise([*range(0, len(starts), _CHUNK), len(starts)])
            parts = (starts[max(first - 1, 0) : stop] for first, stop in edges)
            rise = all((np.diff(part) > 0).all() for part in parts)
            if starts[0] != 0 or not rise or starts[-1] >= total:
                message = f"{path}: damaged (its positions do not rise from 0 to {total:,})"
                raise DataError(message, AGAIN)
        # Every document begins with a sentence.
        places = np.minimum(np.searchsorted(self.sentences, begins), len(self.sentences) - 1)
        if (self.sentences[places] != begins).any():
            raise DataError(f"{paths[1]}: damaged (a document begins inside a sentence)", AGAIN)

    @cached_property
    def highest(self) -> int:
        """The highest token. The file is read, not mapped, so that it fills no memory."""
        highest = 0
        with self.path.open("rb") as handle:
            while len(chunk := np.fromfile(handle, self.tokens.dtype, _CHUNK)):
                highest = max(highest, int(chunk.max()))
        return highest


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus. Its files are mapped, not read: only what is looked at takes memory."""

    folder: Path  # of the corpus
    manifest: Mapping[str, Any]  # the content of its `corpus.json`
    _shards: list[Shard] = field(repr=False)
    _ends: Array = field(repr=False)  # [shards] documents in each shard and those before it

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Corpus:
        """Open a corpus that `prepare` made, or its `validation` folder.

        To `verify` is to read every byte, compare the SHA-256, and look for tokens outside of the
        vocabulary. Otherwise sizes and the starts of documents and sentences are checked.

        Raises:
            DataError: not a corpus, or damaged; names the file.
        """
        corpus = _open_maps(_at_hand(folder), verify=verify)
        for shard in corpus._shards:
            shard.check()
        if verify:
            corpus.check_tokens(corpus.vocab_size)
        return corpus

    def check_tokens(self, vocab_size: int) -> None:
        """Raise a DataError unless a vocabulary has all tokens, which are read the first time."""
        for shard in self._shards:
            if shard.highest >= vocab_size:
                raise DataError(
                    f"{shard.path}: damaged (the token {shard.highest:,}, of a vocabulary of "
                    f"{vocab_size:,})",
                    AGAIN,
                )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> Any:
        # Pickling would copy a whole map into the other process; there, the files are mapped again.
        return _open_maps, (self.folder,)

    def document(self, index: int) -> Array:
        """`[T]` uint16 or uint32: the tokens of a document, a read-only view of the file.

        Raises:
            IndexError: there is no such document; negative numbers are refused too.
        """
        shard, start, stop, _ = self._find(index)
        return shard.tokens[start:stop]

    def bounds(self, index: int) -> tuple[int, int]:
        """The first token of a document and one past its last, counted through all shards."""
        shard, start, stop, _ = self._find(index)
        return shard.before + start, shard.before + stop

    def sentence_bounds(self, index: int) -> Array:
        """`[sentences + 1]`: where each sentence of a document begins, and the end; as `bounds`."""
        shard, start, stop, _ = self._find(index)
        first, last = np.searchsorted(shard.sentences, [start, stop])
        return np.append(shard.sentences[first:last], stop) + shard.before

    def read(self, start: int, stop: int) -> Array:
        """A view of tokens inside one document, given by their places through all shards."""
        number = bisect_right(self._shards, start, key=lambda shard: shard.before) - 1
        shard = self._shards[number]
        return shard.tokens[start - shard.before : stop - shard.before]

    def sentences(self, index: int) -> list[Array]:
        """The tokens of each sentence of a document; together they are all of its tokens."""
        return [self.read(a, b) for a, b in pairwise(self.sentence_bounds(index).tolist())]

    def size(self, index: int) -> tuple[int, int]:
        """Characters and UTF-8 bytes of the text of a document."""
        shard, _, _, row = self._find(index)
        return int(shard.documents[row, 1]), int(shard.documents[row, 2])

    def lengths(self) -> Array:
        """`[documents]` int64: tokens of each document. The array is in memory, not mapped."""
        parts = [
            np.diff(np.append(shard.documents[:, 0], len(shard.tokens))) for shard in self._shards
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def _find(self, index: int) -> tuple[Shard, int, int, int]:
        """The shard of a document, its first token there, one past its last, and its row."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of a corpus of {len(self)}")
        # The shard whose documents include this one, and its row there.
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
        """The folder of the tokenizer that made it."""
        return self.folder / TOKENIZER

    def fingerprint(self) -> str:
        """A SHA-256 of the hashes of the tokenizer and of all files: the same for equal tokens."""
        hashes = [self.manifest["tokenizer"]["sha256"]]
        hashes += [
            shard["files"][end]["sha256"] for shard in self.manifest["shards"] for end in ENDS
        ]
        return hashlib.sha256("\n".join(hashes).encode("ascii")).hexdigest()


def _at_hand(place: str | Path) -> Path:
    """The folder of a corpus on the disk: of one in object storage a copy, without others in it."""
    if not is_url(place):
        return Path(place)
    return local_folder(place, lambda name: not name.startswith(f"{VALIDATION_SPLIT}/"))


def _open_maps(folder: Path, verify: bool = False) -> Corpus:
    """Open a corpus without a look at its positions."""
    manifest = read_manifest(folder / CORPUS_MANIFEST)
    # Tokens are counted through all shards, so each shard knows how many come before it.
    shards: list[Shard] = []
    before = 0
    for shard in manifest["shards"]:
        shards.append(open_shard(folder, manifest, shard, before, verify))
        before += shard["tokens"]
    # The token ids mean nothing with any other tokenizer.
    path = folder / TOKENIZER / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: missing", AGAIN)
    if file_entry(path)["sha256"] != manifest["tokenizer"]["sha256"]:
        raise DataError(f"{path}: not the tokenizer that made this corpus", AGAIN)
    ends = np.cumsum([len(shard.documents) for shard in shards], dtype=np.int64)
    return Corpus(folder, manifest, shards, ends)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check the manifest of a corpus; a DataError where it is none, or damaged."""
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
        _check_manifest(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})", AGAIN) from None
    return dict(manifest)


def open_shard(
    folder: Path, manifest: Mapping[str, Any], shard: Mapping[str, Any], before: int, verify: bool
) -> Shard:
    """Map the files of a shard, which must have the sizes of the manifest."""
    dtype = stored_dtype(manifest["dtype"])
    paths = [folder / (shard["name"] + end) for end in ENDS]
    for path, end in zip(paths, ENDS, strict=True):
        entry = shard["files"][end]
        # The size of the tokens follows from their number, which the totals rely on.
        size = shard["tokens"] * dtype.itemsize if end == TOKENS else entry["size"]
        try:
            if (actual := path.stat().st_size) != size:
                raise DataError(f"{path}: damaged ({actual:,} bytes, written were {size:,})", AGAIN)
            if verify and file_entry(path)["sha256"] != entry["sha256"]:
                raise DataError(f"{path}: damaged (its SHA-256 is not the manifest's)", AGAIN)
        except FileNotFoundError:
            raise DataError(f"{path}: missing", AGAIN) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})", AGAIN) from None
    return Shard(
        paths[0],
        before,
        np.memmap(paths[0], dtype, "r"),
        _map_positions(paths[1], (shard["documents"], DOCUMENT_COLUMNS)),
        _map_positions(paths[2], (shard["sentences"],)),
    )


def _map_positions(path: Path, shape: tuple[int, ...]) -> Array:
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


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise a ValueError, KeyError, TypeError or AttributeError if a manifest is wrong."""
    if manifest["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"dtype {manifest['dtype']!r}")
    _check_count("vocab_size", manifest["vocab_size"], least=1)
    _check_digest(manifest["tokenizer"]["sha256"])
    _check_origin(manifest)
    for shard in manifest["shards"]:
        # The name becomes a path: any other could lead out of the folder.
        if not re.fullmatch(r"shard-\d{5,}", shard["name"]):
            raise ValueError(f"name of a shard {shard['name']!r}")
        for name in COUNTS:
            _check_count(name, shard[name], least=1)
        for end in ENDS:
            _check_count("size", shard["files"][end]["size"])
            _check_digest(shard["files"][end]["sha256"])
    if manifest["totals"] != sum_counts(manifest["shards"]):
        raise ValueError("totals are not the sums of the shards")


def _check_origin(manifest: Mapping[str, Any]) -> None:
    """Check the account of how the corpus was made; the training data also count the reading."""
    dict(manifest["settings"].items())
    for source in manifest["sources"]:
        if not isinstance(source["name"], str):
            raise ValueError(f"name of a source {source['name']!r}")
        if not isinstance(source.get("path", ""), str):
            raise ValueError(f"path of a source {source['path']!r}")
        _check_count("size of a source", source["size"])
        if type(source.get("modified", 0)) is not int:  # before 1970 it is negative
            raise ValueError(f"time of a source {source['modified']!r}")
    if manifest["split"] != "train":
        return
    reading = manifest["reading"]
    for name in ("read", "cut", "unknown"):
        _check_count(name, reading[name])
    _check_count("lost", reading.get("lost", 0))
    for name in ("changed", "dropped"):
        for reason, count in reading[name].items():
            _check_count(reason, count)


def _check_count(name: str, value: object, least: int = 0) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} {value!r}")


def _check_digest(value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"SHA-256 {value!r}")


def is_corpus(path: str | Path) -> bool:
    """Whether this is a folder that `pretune prepare` made, on the disk or in object storage."""
    name = os.path.join(path, CORPUS_MANIFEST)
    return look_up(name) is not None if is_url(path) else os.path.isfile(name)


@dataclass(frozen=True)
class TokenRange:
    """The place of some tokens of a corpus, counted through all its shards."""

    start: int  # the first token
    stop: int  # one past the last

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, which: slice) -> TokenRange:
        first, last, _ = which.indices(len(self))
        return TokenRange(self.start + first, self.start + max(first, last))

    @classmethod
    def join(cls, parts: Sequence[TokenRange]) -> TokenRange:
        """Join ranges that follow each other."""
        return cls(parts[0].start, parts[-1].stop)


class StoredSentences:
    """The places of the sentences of a document."""

    def __init__(self, bounds: Array) -> None:
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: int) -> TokenRange:
        return TokenRange(int(self._bounds[number]), int(self._bounds[number + 1]))

    def all(self) -> list[TokenRange]:
        """All sentences: each has tokens."""
        return [TokenRange(start, stop) for start, stop in pairwise(self._bounds.tolist())]


@dataclass(frozen=True)
class StoredDocuments:
    """Documents of a corpus as training reads them; their tokens stay on the disk."""

    corpus: Corpus  # the corpus
    rows: Array  # `[D]` int64: the numbers of the documents there

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """All documents of a corpus; one that is missing, empty or damaged is a DataError."""
        corpus = Corpus.open(folder)
        if not len(corpus):
            raise DataError(f"{folder}: no documents in it", "Prepare it with more text.")
        return cls(corpus, np.arange(len(corpus)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def origin(self) -> str:
        """The corpus, as messages name it."""
        return str(self.corpus.folder)

    def where(self, row: int) -> str:
        """The place of a document, to name in an error."""
        return f"{self.origin}, document {int(self.rows[row]) + 1}"

    def take(self, which: Sequence[int] | Array) -> Self:
        """The documents at these places (0-based), in this order."""
        return replace(self, rows=self.rows[which])

    def head(self, count: int | None) -> Self:
        """The first `count` documents, or all."""
        return replace(self, rows=self.rows[:count])

    def lengths(self) -> Array:
        """`[D]` int64: tokens of each document."""
        return self.corpus.lengths()[self.rows]

    def tokens(self, row: int) -> Array:
        """`[T]`: the tokens of a document, a view of the file."""
        return self.corpus.document(int(self.rows[row]))

    def bounds(self, row: int) -> tuple[int, int]:
        """The place of a document, counted through all shards."""
        return self.corpus.bounds(int(self.rows[row]))

    def size(self, row: int) -> tuple[int, int]:
        """Characters and UTF-8 bytes of the text of a document."""
        return self.corpus.size(int(self.rows[row]))

    def document(self, row: int) -> StoredSentences:
        """The places of the sentences of a document."""
        return StoredSentences(self.corpus.sentence_bounds(int(self.rows[row])))

    def fingerprint(self) -> str:
        """A SHA-256: the same for the same tokens."""
        digest = hashlib.sha256(self.corpus.fingerprint().encode("ascii"))
        digest.update(self.rows.tobytes())
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the corpus."""
        return load_tokenizer(self.corpus.tokenizer_folder)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise a DataError unless a model's tokenizer cuts and numbers tokens as the corpus's."""
        if not tokenizer.cuts_as(self.tokenizer):
            raise DataError(
                f"{self.origin}: was made with another tokenizer than the model's "
                f"({self.tokenizer.vocab_size:,} entries there, {tokenizer.vocab_size:,} here)",
                "Prepare it again with the model's: pretune prepare TEXT --tokenizer MODEL "
                "--output FOLDER; or, for random weights, take the corpus's: "
                f"model.tokenizer={self.corpus.tokenizer_folder}",
            )
        self.corpus.check_tokens(tokenizer.vocab_size)
