"""Blocks for `causal_lm` out of a prepared corpus: made when asked for, of tokens on the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, MadeFeatures
from pretune.errors import DataError
from pretune.tasks.losses import IGNORED, NEXT
from pretune.tokenizers.tokenizer import Tokenizer


def edge_of(tokenizer: Tokenizer) -> list[int]:
    """What stands on both sides of a text: its end of text, where the tokenizer has one."""
    end = tokenizer.special_id("eos_token")
    end = tokenizer.special_id("sep_token") if end is None else end
    return [] if end is None else [end]


def stored_blocks(
    documents: StoredDocuments, tokenizer: Tokenizer, size: int, step: int, boundaries: bool
) -> MadeFeatures:
    """Blocks of at most `size` tokens, each with the token after it as its last target.

    The same blocks as of the documents' texts. Without boundaries, all documents are one stream,
    while records are one for each 1,024 of them.

    Args:
        documents: tokenized by that tokenizer.
        tokenizer: of the model.
        size: tokens of a block.
        step: how many tokens after the one before a block begins; its targets are those that the
            one before had not.
        boundaries: whether blocks end where documents do.

    Raises:
        DataError: there is nothing to foretell: each document is one token, without an end.
    """
    stream = _Stream.of(documents, tokenizer)
    # Every token but the first is foretold once.
    targets = np.diff(stream.starts) - 1 if boundaries else stream.starts[-1:] - 1
    counts = np.where(targets > 0, 1 - (-(targets - size).clip(0) // step), 0)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    if firsts[-1] == 0:
        raise DataError(
            f"{documents.origin}: no document has two tokens, so none has a next one",
            "Give more text.",
        )
    lengths = np.full(firsts[-1], size, dtype=np.int32)
    some = counts > 0
    lengths[firsts[1:][some] - 1] = (targets - (counts - 1) * step)[some]

    def make(index: int) -> Feature:
        unit = int(np.searchsorted(firsts, index, side="right")) - 1
        place = index - int(firsts[unit])
        start = int(stream.starts[unit]) + place * step
        done = start + size - step if place else start
        return stream.block(start, done, start + int(lengths[index]))

    blocks = f"{size}" if step == size else f"{size}/{step}"
    said = f"causal_lm {blocks} {boundaries} {stream.edge} {documents.fingerprint()}"
    begins = np.zeros(firsts[-1], dtype=np.bool_)
    begins[firsts[:-1][some]] = True
    digest = hashlib.sha256(said.encode()).hexdigest()
    return MadeFeatures(lengths, make, digest, begins=begins)


@dataclass(frozen=True)
class _Stream:
    """All documents one after the other, each between two ends of text.

    Attributes:
        documents: they.
        tokenizer: theirs.
        edge: the end of text, or nothing.
        starts: `[D + 1]` int64: where each document begins in the stream, and its length.
    """

    documents: StoredDocuments
    tokenizer: Tokenizer
    edge: list[int]
    starts: Array

    @classmethod
    def of(cls, documents: StoredDocuments, tokenizer: Tokenizer) -> Self:
        """Of documents."""
        edge = edge_of(tokenizer)
        ends = np.cumsum(documents.lengths() + 2 * len(edge))
        return cls(documents, tokenizer, edge, np.concatenate([[0], ends]))

    def block(self, start: int, done: int, stop: int) -> Feature:
        """The tokens from `start` to `stop`, and as targets those that follow each after `done`."""
        tokens, *size = self._read(start, stop + 1)
        if done > start:
            _, *size = self._read(done, stop + 1)
        following = tokens[1:].astype(np.int64)
        following[: done - start] = IGNORED
        return Feature(
            tokens=tokens[:-1],  # type: ignore[arg-type]
            targets={NEXT: following, "chars": size[0], "bytes": size[1]},
            record=int(np.searchsorted(self.starts, start, side="right")) - 1,
        )

    def _read(self, start: int, stop: int) -> tuple[Array, int, int]:
        """Some tokens; the characters and bytes of all but the first, which is not foretold."""
        ids: list[Array] = []
        chars, size, begin = 0, 0, start
        first = row = int(np.searchsorted(self.starts, start, side="right")) - 1
        while begin < stop:
            here, end = int(self.starts[row]), min(stop, int(self.starts[row + 1]))
            ids.append(self._tokens(row, begin - here, end - here))
            before = self._size(row, begin - here + (row == first))
            after = self._size(row, end - here)
            chars, size = chars + after[0] - before[0], size + after[1] - before[1]
            begin, row = end, row + 1
        return np.concatenate(ids), chars, size

    def _tokens(self, row: int, start: int, stop: int) -> Array:
        """A piece of a document between its ends, as int32."""
        edge = len(self.edge)
        first, last = self.documents.bounds(row)
        inside = min(last, first + max(start - edge, 0)), min(last, first + max(stop - edge, 0))
        parts = [
            self.edge * (start < edge),
            self.documents.corpus.read(*inside) if inside[0] < inside[1] else [],
            self.edge * (stop > edge + last - first),
        ]
        return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])

    def _size(self, row: int, place: int) -> tuple[int, int]:
        """Characters and bytes before a place of a document.

        The corpus knows those of whole documents, which are shared out evenly over its tokens:
        what is added up over a document is exact, and more is never asked for. Of a document
        without ends all but its first token is foretold; that one's size is told by itself.
        """
        first, last = self.documents.bounds(row)
        tokens, edge = last - first, len(self.edge)
        done = min(max(place - edge, 0), tokens)
        whole = self.documents.size(row)
        if edge or tokens == 1 or done == 0:
            return whole[0] * done // tokens, whole[1] * done // tokens
        own = self._size_of(int(self.documents.corpus.read(first, first + 1)[0]))
        chars, size = (
            min(begin, all_of_it) + max(all_of_it - begin, 0) * (done - 1) // (tokens - 1)
            for begin, all_of_it in zip(own, whole, strict=True)
        )
        return chars, size

    def _size_of(self, token: int) -> tuple[int, int]:
        """Characters and bytes of a token; an unknown one stands for a character."""
        if token == self.tokenizer.special_id("unk_token"):
            return 1, 1
        text = self.tokenizer.decode([token], skip_special=False)
        return len(text), len(text.encode("utf-8"))
