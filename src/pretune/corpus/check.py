"""What has to hold in a corpus: it may come from a stranger, with sums that fit what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pretune.corpus.shards import COUNTS, DOCUMENTS, SENTENCES, TOKENS, sum_counts
from pretune.data.arrays import Array
from pretune.errors import DataError

ENDS = (TOKENS, DOCUMENTS, SENTENCES)
AGAIN = "Copy the corpus again, or prepare it anew."
#: Values looked at in one go.
_CHUNK = 1 << 22


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise a ValueError, KeyError, TypeError or AttributeError if a manifest is wrong."""
    if manifest["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"dtype {manifest['dtype']!r}")
    _check_count("vocab_size", manifest["vocab_size"], least=1)
    _check_digest(manifest["tokenizer"]["sha256"])
    _check_origin(manifest)
    for shard in manifest["shards"]:
        # Nothing else: a name may not lead out of the folder.
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
    """What is said of how the corpus was made; in that of the training data also of the reading."""
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
    for name in ("changed", "dropped"):
        for reason, count in reading[name].items():
            _check_count(reason, count)


def _check_count(name: str, value: object, least: int = 0) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} {value!r}")


def _check_digest(value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"SHA-256 {value!r}")


def check_starts(path: Path, starts: Array, tokens: int) -> None:
    """Check where the documents or the sentences of a shard begin: from 0 on, each with tokens.

    Args:
        path: of their file, for messages.
        starts: `[N]` int64, N over 0.
        tokens: of the shard.

    Raises:
        DataError: they begin elsewhere.
    """
    # One value of the part before is in each: they have to rise from part to part, too.
    edges = [*range(0, len(starts), _CHUNK), len(starts)]
    rise = all(
        (np.diff(starts[max(first - 1, 0) : stop]) > 0).all() for first, stop in pairwise(edges)
    )
    if starts[0] != 0 or not rise or starts[-1] >= tokens:
        raise DataError(f"{path}: damaged (its positions do not rise from 0 to {tokens:,})", AGAIN)


def check_documents(path: Path, documents: Array, sentences: Array) -> None:
    """Check that every document begins with a sentence.

    Args:
        path: of the sentences, for messages.
        documents: `[D]` int64, where they begin; as `check_starts` wants them, and so
        sentences: `[S]` int64.

    Raises:
        DataError: one does not.
    """
    places = np.minimum(np.searchsorted(sentences, documents), len(sentences) - 1)
    if (sentences[places] != documents).any():
        raise DataError(f"{path}: damaged (a document begins inside a sentence)", AGAIN)


def highest(path: Path, dtype: np.dtype[Any]) -> int:
    """The highest token of a shard. The file is read and not mapped: no memory is taken for it."""
    found = 0
    with path.open("rb") as handle:
        while len(chunk := np.fromfile(handle, dtype, _CHUNK)):
            found = max(found, int(chunk.max()))
    return found


def check_tokens(path: Path, found: int, vocab_size: int) -> None:
    """Check the highest token of a shard.

    Raises:
        DataError: the vocabulary does not have it.
    """
    if found >= vocab_size:
        raise DataError(
            f"{path}: damaged (the token {found:,}, of a vocabulary of {vocab_size:,})", AGAIN
        )
