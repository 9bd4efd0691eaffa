"""Sequences for `mask_lm` from a prepared corpus, made on demand from tokens on disk."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from tokenizers import models

from pretune.corpus.store import StoredDocuments, TokenRange
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, MadeFeatures
from pretune.data.sentence_pairs import PairMaker, SentenceTokens
from pretune.errors import DataError
from pretune.tokenizers.tokenizer import Tokenizer

#: Makes a feature of one or two segments, the number of their document, and the label of a pair.
MakeSequence = Callable[[list[SentenceTokens], int, int | None], Feature]
#: Called with the number of documents done.
_Progress = Callable[[int], None] | None

#: A pair on disk: where its segments begin in the corpus, its document, their lengths, its label.
PAIR = np.dtype(
    [(name, "<i8") for name in ("first", "second", "row")]
    + [(name, "<i4") for name in ("left", "right", "label")]
)
#: Pairs that are kept in memory until they are written.
_PAIRS_AT_A_TIME = 4096


def continuation_tokens(documents: StoredDocuments, tokenizer: Tokenizer, words: str) -> Array:
    """`[vocabulary]` bool: whether a token continues the word before it.

    Raises:
        DataError: tokens alone do not tell where words (the option `task.words`) begin.
    """
    model = tokenizer.engine.model
    if words != "tokenizer" or not isinstance(model, models.WordPiece):
        what = f"task.words={words}" if words != "tokenizer" else "this tokenizer"
        raise DataError(
            f"{documents.origin}: the words of {what} cannot be told from tokens alone",
            "Train on the texts (data.train=FILE), or with task.mask=tokens; a WordPiece "
            "vocabulary with task.words=tokenizer tells its words by their ##.",
        )
    continues = np.zeros(tokenizer.vocab_size, dtype=bool)
    vocabulary = tokenizer.engine.get_vocab(with_added_tokens=False)
    prefix = model.continuing_subword_prefix
    continues[[index for token, index in vocabulary.items() if token.startswith(prefix)]] = True
    return continues


@dataclass(frozen=True)
class CorpusTokens:
    """The tokens of a corpus, with the numbers of their words."""

    documents: StoredDocuments
    unknown: int | None  # id of the unknown token, the only special token in a corpus
    continues: Array | None  # from `continuation_tokens`; None if words do not matter

    def read(self, start: int, stop: int) -> SentenceTokens:
        """The tokens between two places of the corpus."""
        ids = self.documents.corpus.read(start, stop).astype(np.int32)
        if self.continues is None:
            return SentenceTokens(ids, np.zeros(len(ids), dtype=np.int32))
        return SentenceTokens(ids, np.cumsum(~self.continues[ids]).astype(np.int32))

    def all_unknown(self, start: int, stop: int) -> bool:
        """Whether there are only unknown tokens, so that there is nothing to guess."""
        if self.unknown is None:
            return False
        return bool((self.documents.corpus.read(start, stop) == self.unknown).all())


def block_features(
    tokens: CorpusTokens, room: int, make: MakeSequence, digest: str, progress: _Progress = None
) -> Features:
    """Cut each document into as few blocks as possible, all equally long.

    A block has at most `room` tokens; `make` puts special tokens around it.

    Raises:
        DataError: there are no blocks.
    """
    documents = tokens.documents
    # Numbers of blocks: those of document r are firsts[r] to firsts[r + 1].
    totals = documents.lengths()
    counts = -(-totals // room)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    # The lengths of all blocks, special tokens included.
    rows = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(firsts[-1]) - firsts[rows]
    begin, end = (totals[rows] * (number + more) // counts[rows] for more in (0, 1))
    lengths = (end - begin + 2).astype(np.int32)
    del rows, number, begin, end

    def place(block: int) -> tuple[int, int, int]:
        """The document of a block, and where the block begins and ends in the corpus."""
        row = int(np.searchsorted(firsts, block, side="right")) - 1
        start, stop = documents.bounds(row)
        size, count, number = stop - start, int(counts[row]), block - int(firsts[row])
        return row, start + size * number // count, start + size * (number + 1) // count

    # Leave out the blocks in which there is nothing to guess.
    kept, empty = None, list[int]()
    for row in range(len(documents) if tokens.unknown is not None else 0):
        if (documents.tokens(row) == tokens.unknown).any():
            own = range(int(firsts[row]), int(firsts[row + 1]))
            empty += [block for block in own if tokens.all_unknown(*place(block)[1:])]
        if progress is not None and row % 1024 == 0:
            progress(row)
    if empty:
        kept = np.delete(np.arange(len(lengths)), empty)
        lengths = lengths[kept]
    _refuse_none(len(lengths), documents, "no document has a token that is known")

    def block(index: int) -> Feature:
        row, start, stop = place(index if kept is None else int(kept[index]))
        return make([tokens.read(start, stop)], row, None)

    return MadeFeatures(lengths, block, digest)


def pair_features(
    tokens: CorpusTokens,
    maker: PairMaker[TokenRange],
    copies: int,
    make: MakeSequence,
    digest: str,
    progress: _Progress = None,
) -> Features:
    """Make pairs of segments; their places are kept in an unnamed temporary file.

    Each document is split into pairs `copies` times; `make` puts special tokens around a pair.

    Raises:
        DataError: there are no pairs, or no room for the file.
    """
    lengths = array("i")

    def places() -> Iterator[tuple[int, ...]]:
        for row in range(len(tokens.documents)):
            for pair in chain.from_iterable(maker.pairs(row, copy) for copy in range(copies)):
                first, second = pair.first, pair.second
                if all(tokens.all_unknown(part.start, part.stop) for part in (first, second)):
                    continue
                lengths.append(len(first) + len(second) + 3)
                yield first.start, second.start, row, len(first), len(second), pair.label
            if progress is not None and row % 256 == 0:
                progress(row)

    pairs = _on_disk(places())
    _refuse_none(len(lengths), tokens.documents, "no document has two sentences")

    def pair(index: int) -> Feature:
        first, second, row, left, right, label = pairs[index].item()
        parts = [tokens.read(first, first + left), tokens.read(second, second + right)]
        return make(parts, row, label)

    return MadeFeatures(np.frombuffer(lengths, dtype=np.int32), pair, digest)


def _on_disk(pairs: Iterator[tuple[int, ...]]) -> Array:
    """`[N]` of `PAIR`, mapped from a temporary file that is deleted when it is no longer used."""
    try:
        with tempfile.TemporaryFile(prefix="pretune-pairs-") as file:
            while some := list(islice(pairs, _PAIRS_AT_A_TIME)):
                file.write(np.array(some, dtype=PAIR).tobytes())
            file.flush()
            return np.memmap(file, PAIR, "r") if file.tell() else np.empty(0, dtype=PAIR)
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(
            f"{tempfile.gettempdir()}: the places of the pairs cannot be written ({why})",
            "Make room there, or name another folder in the environment: TMPDIR=FOLDER.",
        ) from error


def _refuse_none(count: int, documents: StoredDocuments, why: str) -> None:
    if count == 0:
        raise DataError(
            f"{documents.origin}: {why}, so there is nothing to learn",
            "With next=nsp or sop a document needs several sentences: set task.next=none, or "
            "prepare the texts otherwise (--documents file, --join-lines).",
        )
