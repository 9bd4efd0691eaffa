"""Duplicate documents: equal ones by a hash, similar ones by MinHash and LSH (Broder 1997)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.errors import PretuneError

DIGEST_BYTES = 16
#: Hash functions of a signature: the standard error of an estimated similarity is at most 0.044.
PERMUTATIONS = 128
#: Words, or Chinese characters, of a shingle (Lee et al. 2022, section 4.2, take 5 tokens too).
SHINGLE = 5
#: A missed pair costs more than a pair looked at in vain: the latter is compared in full.
_WEIGHTS = (0.1, 0.9)
_SCHEME = "affine32"

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uf900-\ufaff\U00020000-\U0003ffff]")
_LETTER = re.compile(r"\w")

Signature = NDArray[np.uint32]


def digest(text: str) -> bytes:
    """`DIGEST_BYTES` bytes, the same for texts that differ in nothing but spaces (and NFC)."""
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(words.encode("utf-8"), digest_size=DIGEST_BYTES).digest()


def held_back(key: bytes, share: float) -> bool:
    """Whether a document with this digest belongs to the validation data.

    It depends on the text alone: not on the other documents, nor on their order.
    """
    return int.from_bytes(key[:8], "big") < share * 2**64


def shingles(text: str) -> set[str]:
    """The runs of `SHINGLE` words; of characters where more than half of the letters are Chinese.

    Capitals and punctuation count for nothing. A text too short for one is one shingle as a whole.
    """
    text = text.lower()
    if 2 * len(_CJK.findall(text)) > len(_LETTER.findall(text)):
        units, joint = re.findall(r"\w", text), ""
    else:
        units, joint = re.findall(r"\w+", text), " "
    last = max(len(units) - SHINGLE, 0)
    return {joint.join(units[i : i + SHINGLE]) for i in range(last + 1)}


def signature(text: str) -> Signature:
    """`[PERMUTATIONS]` uint32: the least value of each hash function over the shingles.

    The share of equal values of two signatures estimates the Jaccard similarity of the two sets
    (Broder 1997).

    Raises:
        PretuneError: datasketch is not installed.
    """
    # A copy shares the hash functions: to draw them anew would take longer than to use them.
    minhash = _empty_minhash().copy()
    for batch in _batched(shingles(text)):
        minhash.update_batch(batch)
    values: Signature = minhash.hashvalues
    return values


def _batched(texts: set[str], size: int = 4096) -> Iterator[list[bytes]]:
    # All at once, a long document would take `PERMUTATIONS` numbers for each of its shingles.
    encoded = [text.encode("utf-8") for text in texts]
    for start in range(0, len(encoded), size):
        yield encoded[start : start + size]


@cache
def _empty_minhash() -> Any:
    return _datasketch().MinHash(num_perm=PERMUTATIONS, seed=1, scheme=_SCHEME)


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise PretuneError(
            "near-duplicates are found with datasketch, which is not installed",
            "Install it with: pip install 'pretune[corpus]'",
        ) from None
    return datasketch


class Duplicates:
    """The documents kept so far, to be asked about each one that comes, in the order of the corpus.

    Args:
        exact: drop documents that are equal to one kept before. About 100 bytes a document.
        near: drop those with an estimated similarity of at least this; None: do not look.
            About 5 kB a document.

    Raises:
        PretuneError: datasketch is needed and not installed.
    """

    def __init__(self, *, exact: bool, near: float | None) -> None:
        self.exact = exact
        self.near = near
        self._keys: set[bytes] = set()
        self._signatures: list[Signature] = []
        self._index = None
        if near is not None:
            self._index = _datasketch().MinHashLSH(
                threshold=near, num_perm=PERMUTATIONS, weights=_WEIGHTS
            )

    def reason(self, key: bytes, values: Signature | None) -> str | None:
        """Why a document is dropped: "duplicate", "near-duplicate", or None; then it is kept.

        Args:
            key: its digest.
            values: its signature, where near-duplicates are looked for.
        """
        if self.exact and key in self._keys:
            return "duplicate"
        if values is not None and self.similar(values) is not None:
            return "near-duplicate"
        self.remember(key, values)
        return None

    def similar(self, values: Signature) -> int | None:
        """Which of the documents kept (0-based) is near enough to one with this signature."""
        if self._index is not None:
            for other in self._index.query(self._minhash(values)):
                if float(np.mean(self._signatures[other] == values)) >= (self.near or 0.0):
                    return int(other)
        return None

    def remember(self, key: bytes, values: Signature | None) -> None:
        """Count a document as kept."""
        if self.exact:
            self._keys.add(key)
        if self._index is not None and values is not None:
            self._index.insert(len(self._signatures), self._minhash(values))
            self._signatures.append(values)

    @staticmethod
    def _minhash(values: Signature) -> Any:
        # Without the hash functions, which only new shingles need.
        return _datasketch().LeanMinHash(seed=1, hashvalues=values, scheme=_SCHEME)
