"""Blocks for `causal_lm`: streams of tokens, from texts or a prepared corpus, cut into sequences.

A text is `END tokens END` where the tokenizer has an end of text. A block of L tokens has L
targets: the token after each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

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


def _block(ids: Array, known: int, sizes: Sequence[int], record: int) -> Feature:
    """A block: the tokens to read, and one more, which is only predicted.

    The block before had the first `known` targets already; the others have `sizes` characters and
    bytes.
    """
    following = ids[1:].astype(np.int64)
    following[:known] = IGNORED
    targets = {NEXT: following, "chars": sizes[0], "bytes": sizes[1]}
    return Feature(ids[:-1], targets=targets, record=record)  # type: ignore[arg-type]


def text_stream(text: str, tokenizer: Tokenizer, row: int) -> Array:
    """`[4, N]` int64: ids, characters, UTF-8 bytes and record of each token of a text.

    The text is tokenized chunk by chunk, with ends of text around it. Streams of several texts can
    be concatenated.
    """
    edge = np.array(_end_of(tokenizer), dtype=np.int64)
    parts, base = [np.stack([edge, 0 * edge])], 0
    for chunk in split_text(text):
        # As in a prepared corpus: a text that spells `<|endoftext|>` does not end there.
        (encoding,) = tokenizer.encode_bare([chunk], literal=True)
        ends = np.array([after for _, after in encoding.offsets], dtype=np.int64)
        parts.append(np.stack([np.array(encoding.ids, dtype=np.int64), base + ends]))
        base += len(chunk)
    ids, ends = np.concatenate([*parts, np.stack([edge, 0 * edge + base])], axis=1)
    # Bytes in UTF-8 before each character, and in all.
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    each = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    before = np.concatenate([[0], np.cumsum(each)])
    # A token ends where its last character does; several may share one (bytes of an emoji).
    sizes = np.diff(np.stack([ends, before[ends]]), axis=1, prepend=0)
    return np.stack([ids, *sizes, np.full_like(ids, row)])


def stream_blocks(stream: Array, size: int, step: int) -> Iterator[Feature]:
    """Cut a stream (see `text_stream`) into blocks of at most `size` tokens.

    A block begins `step` tokens after the one before. With less than `size`, only what that block
    does not predict has a target.
    """
    last, done = stream.shape[1] - 1, 0
    for start in range(0, last, step):
        if done == last:  # overlapping blocks may reach the end early
            return
        stop = min(start + size, last)
        # The targets are the tokens from done + 1 to stop.
        sizes = stream[1:3, done + 1 : stop + 1].sum(axis=1).tolist()
        ids = stream[0, start : stop + 1].astype(np.int32)
        yield _block(ids, done - start, sizes, int(stream[3, start]))
        done = stop


def stored_blocks(
    documents: StoredDocuments, tokenizer: Tokenizer, size: int, step: int, boundaries: bool
) -> MadeFeatures:
    """Make the blocks of a prepared corpus on demand, equal to the blocks of its texts.

    With `boundaries` blocks end where documents do. Without, all documents are one stream, while
    records are joined 1,024 at a time.

    Raises:
        DataError: there is nothing to predict: each document is one token, without an end.
    """
    stream = CorpusStream(documents, tokenizer)
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


class CorpusStream:
    """Tokens on disk: all documents one after the other, each between two ends of text.

    Attributes:
        edge: the end of text, or nothing.
        starts: `[D + 1]` int64: where each document begins in the stream, and the stream's length.
    """

    def __init__(self, documents: StoredDocuments, tokenizer: Tokenizer) -> None:
        self.documents, self.tokenizer, self.edge = documents, tokenizer, _end_of(tokenizer)
        ends = np.cumsum(documents.lengths() + 2 * len(self.edge))
        self.starts = np.concatenate([[0], ends])

    def block(self, start: int, done: int, stop: int) -> Feature:
        """The block from `start` to `stop`, with only its targets after `done`."""
        ids, sizes, begin = list[Array](), np.zeros(2, dtype=np.int64), start
        first = row = int(np.searchsorted(self.starts, start, side="right")) - 1
        # Document by document, up to the last target.
        while begin <= stop:
            here, end = int(self.starts[row]), min(stop + 1, int(self.starts[row + 1]))
            ids.append(self._tokens(row, begin - here, end - here))
            # Sizes are differences of running sums, from the first target on.
            if end > done + 1:
                before = self._size(row, max(begin, done + 1) - here)
                sizes += np.subtract(self._size(row, end - here), before)
            begin, row = end, row + 1
        return _block(np.concatenate(ids), done - start, sizes.tolist(), first)

    def _tokens(self, row: int, start: int, stop: int) -> Array:
        """`[stop - start]` int32: tokens of a document, counted with its ends of text."""
        edge = len(self.edge)
        first, last = self.documents.bounds(row)
        begin, end = (min(last, first + max(place - edge, 0)) for place in (start, stop))
        parts = [
            self.edge * (start < edge),
            self.documents.corpus.read(begin, end) if begin < end else [],
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
        # The unknown token counts as one character.
        token = int(self.documents.corpus.read(first, first + 1)[0])
        unknown = token == self.tokenizer.special_id("unk_token")
        text = "?" if unknown else self.tokenizer.decode([token], skip_special=False)
        own = len(text), len(text.encode("utf-8"))
        chars, size = (
            min(begin, total) + max(total - begin, 0) * (done - 1) // (tokens - 1)
            for begin, total in zip(own, whole, strict=True)
        )
        return chars, size
