"""Documents of a prepared corpus, as training reads them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from pretune.corpus.store import CORPUS_MANIFEST, Corpus
from pretune.data.arrays import Array
from pretune.errors import DataError
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer


def is_corpus(path: str | Path) -> bool:
    """Whether this is a folder that `pretune prepare` made."""
    return os.path.isfile(os.path.join(path, CORPUS_MANIFEST))


@dataclass(frozen=True)
class TokenRange:
    """Where some tokens of a corpus are, counted through all its shards.

    Attributes:
        start: the first.
        stop: one past the last.
    """

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, which: slice) -> TokenRange:
        first, last, _ = which.indices(len(self))
        return TokenRange(self.start + first, self.start + max(first, last))

    @classmethod
    def join(cls, parts: Sequence[TokenRange]) -> TokenRange:
        """Neighbours as one."""
        return cls(parts[0].start, parts[-1].stop)


class StoredSentences:
    """Where the sentences of a document are."""

    def __init__(self, bounds: Array) -> None:
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: int) -> TokenRange:
        return TokenRange(int(self._bounds[number]), int(self._bounds[number + 1]))

    def all(self) -> list[TokenRange]:
        """All of them: none is without tokens."""
        return [TokenRange(start, stop) for start, stop in pairwise(self._bounds.tolist())]


@dataclass(frozen=True)
class StoredDocuments:
    """Some documents of a corpus, in its order; their tokens stay on the disk.

    Attributes:
        corpus: it.
        rows: `[D]` int64: their numbers there.
    """

    corpus: Corpus
    rows: Array

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """All documents of a corpus.

        Raises:
            DataError: it is none, or damaged; names the file.
        """
        corpus = Corpus.open(folder)
        if not len(corpus):
            raise DataError(f"{folder}: no documents in it", "Prepare it with more text.")
        return cls(corpus, np.arange(len(corpus)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def origin(self) -> str:
        """Its name in messages."""
        return str(self.corpus.folder)

    def where(self, row: int) -> str:
        """A place to name in an error."""
        return f"{self.origin}, document {int(self.rows[row]) + 1}"

    def take(self, which: Sequence[int] | Array) -> Self:
        """The documents at these places (0-based), in this order."""
        return replace(self, rows=self.rows[which])

    def head(self, count: int | None) -> Self:
        """The first `count` documents, or all."""
        return replace(self, rows=self.rows[:count])

    def lengths(self) -> Array:
        """`[D]` int64: how many tokens each has."""
        return self.corpus.lengths()[self.rows]

    def tokens(self, row: int) -> Array:
        """`[T]` the tokens of a document, a view of the file."""
        return self.corpus.document(int(self.rows[row]))

    def bounds(self, row: int) -> tuple[int, int]:
        """Where a document is, counted through all shards."""
        return self.corpus.bounds(int(self.rows[row]))

    def size(self, row: int) -> tuple[int, int]:
        """The characters and the UTF-8 bytes of a document's text."""
        return self.corpus.size(int(self.rows[row]))

    def document(self, row: int) -> StoredSentences:
        """Where the sentences of a document are."""
        return StoredSentences(self.corpus.sentence_bounds(int(self.rows[row])))

    def fingerprint(self) -> str:
        """A SHA-256: the same for the same tokens."""
        digest = hashlib.sha256(self.corpus.fingerprint().encode("ascii"))
        digest.update(self.rows.tobytes())
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The one that made the corpus."""
        return load_tokenizer(self.corpus.tokenizer_folder)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Compare a model's tokenizer with the one that made the corpus.

        Raises:
            DataError: they cut texts differently, or number the tokens differently; or the corpus
                has tokens that none of them has.
        """
        if not tokenizer.cuts_as(self.tokenizer):
            raise DataError(
                f"{self.origin}: was made with another tokenizer than the model's "
                f"({self.tokenizer.vocab_size:,} entries there, {tokenizer.vocab_size:,} here)",
                "Prepare it again with the model's: pretune prepare TEXT --tokenizer MODEL "
                "--output FOLDER; or, for random weights, take the corpus's: "
                f"model.tokenizer={self.corpus.tokenizer_folder}",
            )
        self.corpus.check_tokens(tokenizer.vocab_size)
