"""Blocks for `causal_lm`: streams of tokens, from texts or a prepared corpus, cut into sequences.

A text is `END tokens END` where the tokenizer has an end of text. A block of L tokens has L
targets: the token after each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, MadeFeatures
from pretune.errors import DataError
from pretune.tasks.losses import IGNORED, NEXT
from pretune.text.chunks import split_text
from pretune.tokenizers.tokenizer import Tokenizer


def _end_of(tokenizer: Tokenizer) -> list[int]:
    """The end of text, which stands on both sides of a text; empty: the tokenizer has none."""
    return [] if tokenizer.end_id is None else [tokenizer.end_id]


def _block(ids: Array, known: int, sizes: tuple[int, int], record: int) -> Feature:
    """A block.

    Args:
        ids: the tokens to read, and one more, which is only predicted.
        known: targets at the beginning that the block before had already.
        sizes: characters and bytes of the other targets.
        record: the record.
    """
    following = ids[1:].astype(np.int64)
    following[:known] = IGNORED
    chars, size = sizes
    return Feature(
        tokens=ids[:-1],  # type: ignore[arg-type]
        targets={NEXT: following, "chars": chars, "bytes": size},
        record=record,
    )


@dataclass(frozen=True)
class TextStream:
    """Tokens of texts.

    Attributes:
        ids: `[N]` int32.
        chars: `[N + 1]` characters before each token, and in all.
        bytes: `[N + 1]` bytes in UTF-8 before each token, and in all.
        rows: `[N]` the record of each token.
    """

    ids: Array
    chars: Array
    bytes: Array
    rows: Array

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, row: int) -> Self:
        """Tokenize a text, chunk by chunk, and put ends of text around it."""
        edge = _end_of(tokenizer)
        ids, ends, base = [np.array(edge)], [np.zeros(len(edge))], 0
        for chunk in split_text(text):
            # As in a prepared corpus: a text that spells `<|endoftext|>` does not end there.
            (encoding,) = tokenizer.encode_bare([chunk], literal=True)
            ids.append(np.array(encoding.ids))
            ends.append(base + np.array([after for _, after in encoding.offsets]))
            base += len(chunk)
        ids.append(np.array(edge))
        ends.append(np.full(len(edge), base))
        tokens = np.concatenate(ids).astype(np.int32)
        # A token ends where its last character does; several may share one (bytes of an emoji).
        chars = np.concatenate([[0], *ends]).astype(np.int64)
        return cls(tokens, chars, _bytes_before(text)[chars], np.full(len(tokens), row))

    @classmethod
    def joined(cls, texts: list[Self]) -> Self:
        """Texts one after the other."""
        chars = np.cumsum([0, *(text.chars[-1] for text in texts)])
        sizes = np.cumsum([0, *(text.bytes[-1] for text in texts)])
        return cls(
            np.concatenate([text.ids for text in texts]),
            np.concatenate([[0], *(t.chars[1:] + n for t, n in zip(texts, chars, strict=False))]),
            np.concatenate([[0], *(t.bytes[1:] + n for t, n in zip(texts, sizes, strict=False))]),
            np.concatenate([text.rows for text in texts]),
        )

    def blocks(self, size: int, step: int) -> Iterator[Feature]:
        """Cut the stream into blocks.

        Args:
            size: the maximum number of tokens of a block.
            step: how many tokens after the block before a block begins; with less than `size`,
                only what that block does not predict has a target.
        """
        last, done = len(self.ids) - 1, 0
        for start in range(0, last, step):
            if done == last:  # overlapping blocks may reach the end early
                return
            stop = min(start + size, last)
            # The targets are the tokens from done + 1 to stop.
            chars = int(self.chars[stop + 1] - self.chars[done + 1])
            size_in_bytes = int(self.bytes[stop + 1] - self.bytes[done + 1])
            ids, row = self.ids[start : stop + 1], int(self.rows[start])
            yield _block(ids, done - start, (chars, size_in_bytes), row)
            done = stop


def _bytes_before(text: str) -> Array:
    """`[len(text) + 1]` bytes in UTF-8 before each character, and in all."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    each = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(each)])


def stored_blocks(
    documents: StoredDocuments, tokenizer: Tokenizer, size: int, step: int, boundaries: bool
) -> MadeFeatures:
    """Make the blocks of a prepared corpus on demand, equal to the blocks of its texts.

    Without boundaries all documents are one stream, while records are joined 1,024 at a time.

    Args:
        documents: tokenized by the same tokenizer.
        tokenizer: of the model.
        size: as in `TextStream.blocks`.
        step: as in `TextStream.blocks`.
        boundaries: whether blocks end where documents do.

    Raises:
        DataError: there is nothing to predict: each document is one token, without an end.
    """
    stream = CorpusStream.of(documents, tokenizer)
    # A unit is what is cut by itself: a document, or the whole stream. Every token but its first is
    # predicted once: the first block has up to `size` targets, the others `step` more each.
    targets = np.diff(stream.starts) - 1 if boundaries else stream.starts[-1:] - 1
    counts = np.where(targets > 0, 1 - (-(targets - size).clip(0) // step), 0)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    if firsts[-1] == 0:
        raise DataError(
            f"{documents.origin}: no document has two tokens, so none has a next one",
            "Give more text.",
        )
    # All blocks are full but the last of each unit.
    lengths = np.full(firsts[-1], size, dtype=np.int32)
    some = counts > 0
    lengths[firsts[1:][some] - 1] = (targets - (counts - 1) * step)[some]

    def make(index: int) -> Feature:
        unit = int(np.searchsorted(firsts, index, side="right")) - 1
        place = index - int(firsts[unit])
        start = int(stream.starts[unit]) + place * step
        done = start + size - step if place else start
        return stream.block(start, done, start + int(lengths[index]))

    sizes = f"{size}" if step == size else f"{size}/{step}"
    key = f"causal_lm {sizes} {boundaries} {stream.edge} {documents.fingerprint()}"
    begins = np.zeros(firsts[-1], dtype=np.bool_)
    begins[firsts[:-1][some]] = True
    digest = hashlib.sha256(key.encode()).hexdigest()
    return MadeFeatures(lengths, make, digest, begins=begins)


@dataclass(frozen=True)
class CorpusStream:
    """Tokens on disk: all documents one after the other, each between two ends of text.

    Attributes:
        documents: of a prepared corpus.
        tokenizer: of the corpus.
        edge: the end of text, or nothing.
        starts: `[D + 1]` int64: where each document begins in the stream, and the stream's length.
    """

    documents: StoredDocuments
    tokenizer: Tokenizer
    edge: list[int]
    starts: Array

    @classmethod
    def of(cls, documents: StoredDocuments, tokenizer: Tokenizer) -> Self:
        """The stream of some documents."""
        edge = _end_of(tokenizer)
        ends = np.cumsum(documents.lengths() + 2 * len(edge))
        return cls(documents, tokenizer, edge, np.concatenate([[0], ends]))

    def block(self, start: int, done: int, stop: int) -> Feature:
        """The block from `start` to `stop`, with only its targets after `done`."""
        ids, *sizes = self._read(start, stop + 1)
        if done > start:
            _, *sizes = self._read(done, stop + 1)
        row = int(np.searchsorted(self.starts, start, side="right")) - 1
        return _block(ids, done - start, (sizes[0], sizes[1]), row)

    def _read(self, start: int, stop: int) -> tuple[Array, int, int]:
        """Some tokens; the characters and bytes of all but the first, which is not predicted."""
        ids: list[Array] = []
        chars, size, begin = 0, 0, start
        first = row = int(np.searchsorted(self.starts, start, side="right")) - 1
        # Document by document.
        while begin < stop:
            here, end = int(self.starts[row]), min(stop, int(self.starts[row + 1]))
            ids.append(self._tokens(row, begin - here, end - here))
            # Sizes are differences of running sums; the very first token is left out.
            before = self._size(row, begin - here + (row == first))
            after = self._size(row, end - here)
            chars, size = chars + after[0] - before[0], size + after[1] - before[1]
            begin, row = end, row + 1
        return np.concatenate(ids), chars, size

    def _tokens(self, row: int, start: int, stop: int) -> Array:
        """`[stop - start]` int32: tokens of a document, counted with its ends of text."""
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

        The corpus knows only the sizes of whole documents; they are spread evenly over the tokens,
        so that sums over a document are exact, and no figure needs more. Of a document without ends
        the first token is not predicted, so its own size is looked up.
        """
        first, last = self.documents.bounds(row)
        tokens, edge = last - first, len(self.edge)
        done = min(max(place - edge, 0), tokens)
        whole = self.documents.size(row)
        if edge or tokens == 1 or done == 0:
            return whole[0] * done // tokens, whole[1] * done // tokens
        own = self._size_of(int(self.documents.corpus.read(first, first + 1)[0]))
        chars, size = (
            min(begin, total) + max(total - begin, 0) * (done - 1) // (tokens - 1)
            for begin, total in zip(own, whole, strict=True)
        )
        return chars, size

    def _size_of(self, token: int) -> tuple[int, int]:
        """Characters and bytes of a token; the unknown token counts as one character."""
        if token == self.tokenizer.special_id("unk_token"):
            return 1, 1
        text = self.tokenizer.decode([token], skip_special=False)
        return len(text), len(text.encode("utf-8"))
