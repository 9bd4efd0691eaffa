"""Sequences for `mask_lm` out of a prepared corpus: made when asked for, of tokens on the disk."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tokenizers import models

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, MadeFeatures
from pretune.data.sentence_pairs import PairMaker, SentenceTokens
from pretune.errors import DataError
from pretune.tasks.masked_lm.metrics import NEXT
from pretune.tasks.masked_lm.options import MaskLmOptions
from pretune.tokenizers.tokenizer import Tokenizer

#: A sequence of one or two parts of a document (its number) with their targets.
Make = Callable[[list[SentenceTokens], int, Mapping[str, int]], Feature]
#: A pair: where its segments begin in the corpus, their tokens, the label, the document.
PAIR = np.dtype(
    [
        ("first", "<i8"),
        ("second", "<i8"),
        ("row", "<i8"),
        ("left", "<i4"),
        ("right", "<i4"),
        ("label", "<i4"),
    ]
)
#: Pairs that are kept in memory until they are written.
_PAIRS = 4096


def stored_words(documents: StoredDocuments, tokenizer: Tokenizer, words: str) -> Array:
    """`[vocabulary]` bool: the tokens that go on with the word before them.

    Raises:
        DataError: the tokens do not tell.
    """
    model = tokenizer.engine.model
    if words != "tokenizer" or not isinstance(model, models.WordPiece):
        what = f"task.words={words}" if words != "tokenizer" else "this tokenizer"
        raise DataError(
            f"{documents.origin}: the words of {what} cannot be told from tokens alone",
            "Train on the texts (data.train=FILE), or with task.mask=tokens; a WordPiece "
            "vocabulary with task.words=tokenizer tells its words by their ##.",
        )
    prefix = model.continuing_subword_prefix
    found = np.zeros(tokenizer.vocab_size, dtype=bool)
    vocabulary = tokenizer.engine.get_vocab(with_added_tokens=False)
    found[[index for token, index in vocabulary.items() if token.startswith(prefix)]] = True
    return found


def stored_sequences(
    documents: StoredDocuments,
    tokenizer: Tokenizer,
    options: MaskLmOptions,
    continues: Array | None,
    make: Make,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """The sequences that `mask_lm` would make of the documents' texts.

    Args:
        documents: tokenized by that tokenizer.
        tokenizer: of the model.
        options: of the task.
        continues: see `stored_words`; None where words do not matter.
        make: puts special tokens around the parts of a sequence.
        progress: called with the number of documents done.

    Raises:
        DataError: there are none.
    """
    source = _Source(documents, tokenizer.special_id("unk_token"), continues)
    said = f"mask_lm {options.model_dump_json()} {documents.fingerprint()}"
    digest = hashlib.sha256(said.encode()).hexdigest()
    if options.next == "none":
        return _blocks(source, options.max_length - 2, make, digest, progress)
    return _pairs(source, options, make, digest, progress)


@dataclass(frozen=True)
class _Source:
    """Tokens out of a corpus.

    Attributes:
        documents: of it.
        unknown: the only special token that a corpus can have in it, if there is one.
        continues: see `stored_words`.
    """

    documents: StoredDocuments
    unknown: int | None
    continues: Array | None

    def tokens(self, start: int, stop: int) -> SentenceTokens:
        """Those between two places of the corpus, with the numbers of their words."""
        ids = self.documents.corpus.read(start, stop).astype(np.int32)
        if self.continues is None:
            return SentenceTokens(ids, np.zeros(len(ids), dtype=np.int32))
        return SentenceTokens(ids, np.cumsum(~self.continues[ids]).astype(np.int32))

    def says_nothing(self, start: int, stop: int) -> bool:
        """Whether all tokens there are unknown ones: then there is nothing to guess."""
        if self.unknown is None:
            return False
        return bool((self.documents.corpus.read(start, stop) == self.unknown).all())


def _blocks(
    source: _Source,
    room: int,
    make: Make,
    digest: str,
    progress: Callable[[int], None] | None,
) -> Features:
    """Each document in as few blocks as can be, all equally long."""
    documents = source.documents
    totals = documents.lengths()
    counts = -(-totals // room)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    rows = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(firsts[-1]) - firsts[rows]
    edges = [totals[rows] * (number + more) // counts[rows] for more in (0, 1)]
    lengths = (edges[1] - edges[0] + 2).astype(np.int32)
    del rows, number, edges

    def place(block: int) -> tuple[int, int, int]:
        """The document of a block, and where it is in the corpus."""
        row = int(np.searchsorted(firsts, block, side="right")) - 1
        start, stop = documents.bounds(row)
        count, number = int(counts[row]), block - int(firsts[row])
        size = stop - start
        return row, start + size * number // count, start + size * (number + 1) // count

    empty = [
        block
        for block in _unknown(source, firsts, progress)
        if source.says_nothing(*place(block)[1:])
    ]
    kept = None
    if empty:
        kept = np.delete(np.arange(len(lengths)), empty)
        lengths = lengths[kept]
    _refuse_none(len(lengths), documents, "no document has a token that is known")

    def one(index: int) -> Feature:
        row, start, stop = place(index if kept is None else int(kept[index]))
        return make([source.tokens(start, stop)], row, {})

    return MadeFeatures(lengths, one, digest)


def _unknown(
    source: _Source, firsts: Array, progress: Callable[[int], None] | None
) -> Iterator[int]:
    """The blocks of documents in which some token is unknown."""
    for row in range(len(source.documents) if source.unknown is not None else 0):
        if (source.documents.tokens(row) == source.unknown).any():
            yield from range(int(firsts[row]), int(firsts[row + 1]))
        if progress is not None and row % 1024 == 0:
            progress(row)


def _pairs(
    source: _Source,
    options: MaskLmOptions,
    make: Make,
    digest: str,
    progress: Callable[[int], None] | None,
) -> Features:
    """Pairs of segments; where they are is written to a file that has no name, and mapped."""
    documents = source.documents
    assert options.next != "none"  # noqa: S101 - for the type checker
    room, short = options.max_length - 3, options.short_share
    maker = PairMaker(documents, kind=options.next, room=room, short=short)
    lengths = array("i")

    def found() -> Iterator[tuple[int, ...]]:
        for row in range(len(documents)):
            for copy in range(options.dupe):
                for pair in maker.pairs(row, copy):
                    first, second = pair.first, pair.second
                    if all(source.says_nothing(part.start, part.stop) for part in (first, second)):
                        continue
                    lengths.append(len(first) + len(second) + 3)
                    sizes = (len(first), len(second))
                    yield (first.start, second.start, row, *sizes, pair.label)
            if progress is not None and row % 256 == 0:
                progress(row)

    pairs = _on_disk(found())
    _refuse_none(len(lengths), documents, "no document has two sentences")

    def one(index: int) -> Feature:
        first, second, row, left, right, label = pairs[index].item()
        parts = [source.tokens(first, first + left), source.tokens(second, second + right)]
        return make(parts, row, {NEXT: label})

    return MadeFeatures(np.frombuffer(lengths, dtype=np.int32), one, digest)


def _on_disk(pairs: Iterator[tuple[int, ...]]) -> Array:
    """`[N]` of `PAIR`, in a file without a name that is mapped and goes when nobody looks at it."""
    try:
        with tempfile.TemporaryFile(prefix="pretune-pairs-") as file:
            while some := list(islice(pairs, _PAIRS)):
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
