"""Duplicate documents: equal ones by a hash, similar ones by MinHash and LSH (Broder 1997)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.errors import PretuneError

DIGEST_BYTES = 16
#: Hash functions of a signature. With n of them, the estimate of a similarity s has the standard
#: error sqrt(s (1 - s) / n), here at most 0.044.
PERMUTATIONS = 128
#: Words, or Chinese characters, of a shingle; Lee et al. 2022, section 4.2, take 5 tokens.
SHINGLE = 5
#: Weights of false candidates and of missed pairs when LSH chooses its bands. A missed pair costs
#: more: a false candidate is only compared in full.
_WEIGHTS = (0.1, 0.9)
_SCHEME = "affine32"

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uf900-\ufaff\U00020000-\U0003ffff]")
_LETTER = re.compile(r"\w")

Signature = NDArray[np.uint32]


def digest(text: str) -> bytes:
    """A hash of `DIGEST_BYTES` bytes, the same for texts that differ only in spaces and in NFC."""
    words = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(words.encode("utf-8"), digest_size=DIGEST_BYTES).digest()


def text_key(text: str) -> bytes:
    """A digest that is equal for texts that differ only in case and spaces."""
    return digest(text.casefold())


def held_back(key: bytes, share: float) -> bool:
    """Whether a document with this digest belongs to the validation data.

    Depends on the text alone: not on other documents, nor on their order.
    """
    return int.from_bytes(key[:8], "big") < share * 2**64


def shingles(text: str) -> set[str]:
    """The set of all runs of `SHINGLE` words, without capitals and punctuation.

    Where more than half of the letters are Chinese, of `SHINGLE` characters. A shorter text is a
    single shingle.
    """
    # Chinese has no spaces between words: there, characters are the units.
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
    """
    # A copy shares the hash functions: drawing them anew would take longer than using them.
    minhash = _empty_minhash().copy()
    # All shingles of a long document at once would take `PERMUTATIONS` numbers each.
    encoded = [shingle.encode("utf-8") for shingle in shingles(text)]
    for start in range(0, len(encoded), 4096):
        minhash.update_batch(encoded[start : start + 4096])
    values: Signature = minhash.hashvalues
    return values


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


@cache
def lsh_bands(near: float) -> tuple[int, int]:
    """The bands in which LSH looks for candidates: how many, and of how many values each."""
    try:
        index = _datasketch().MinHashLSH(threshold=near, num_perm=PERMUTATIONS, weights=_WEIGHTS)
    except ValueError:  # close to 1 it would choose one band, which it refuses
        return 2, PERMUTATIONS // 2
    return index.b, index.r


class Duplicates:
    """The documents kept so far; each new document is compared with them, in order of the corpus.

    Args:
        exact: look for documents equal to a kept document. Takes about 100 bytes a document.
        near: look for documents with at least this estimated similarity to a kept document; None:
            do not look. Takes about 5 kB a document.
    """

    def __init__(self, *, exact: bool, near: float | None) -> None:
        self.exact = exact
        self.near = near
        self._keys: set[bytes] = set()
        self._signatures: list[Signature] = []
        self._index = None
        if near is not None:  # to choose the bands takes half a second, and is done once
            self._index = _datasketch().MinHashLSH(num_perm=PERMUTATIONS, params=lsh_bands(near))

    def reason(self, key: bytes, values: Signature | None) -> str | None:
        """Why a document is dropped: "duplicate" or "near-duplicate"; if None, it is kept.

        It has a signature where near-duplicates are looked for.
        """
        if self.exact and key in self._keys:
            return "duplicate"
        if values is not None and self.similar(values) is not None:
            return "near-duplicate"
        self.remember(key, values)
        return None

    def similar(self, values: Signature) -> int | None:
        """The number (0-based) of a kept document that is similar to this signature, or None."""
        if self._index is not None:
            # LSH only proposes candidates; the full signatures decide.
            for other in self._index.query(self._minhash(values)):
                if float(np.mean(self._signatures[other] == values)) >= (self.near or 0.0):
                    return int(other)
        return None

    def remember(self, key: bytes, values: Signature | None) -> None:
        """Add a document that is kept."""
        if self.exact:
            self._keys.add(key)
        if self._index is not None and values is not None:
            self._index.insert(len(self._signatures), self._minhash(values))
            self._signatures.append(values)

    @staticmethod
    def _minhash(values: Signature) -> Any:
        # A lean one has no hash functions, which only new shingles would need.
        return _datasketch().LeanMinHash(seed=1, hashvalues=values, scheme=_SCHEME)
