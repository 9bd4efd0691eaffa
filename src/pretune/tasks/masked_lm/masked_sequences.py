"""Blocks of text in which tokens are masked: what tasks that learn from masks have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from typing_extensions import override

from pretune.corpus.store import StoredDocuments
from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.masking import MaskRule, MaskVocabulary, draw_masks, segmenter
from pretune.data.records import Records
from pretune.data.sentence_pairs import SentenceTokens, tokenize_sentences
from pretune.errors import CheckpointError, WrongValueError
from pretune.tasks.base import DrawsAnew, ReadsCorpus, UsesTokenizer
from pretune.tasks.masked_lm.corpus_sequences import (
    CorpusTokens,
    block_features,
    continuation_tokens,
)
from pretune.tokenizers.tokenizer import Tokenizer

#: Target of each token: the token to guess there, `NOT_MASKED`, or `UNKNOWN`.
MASKED = "masked"
#: Target of a pair: 1 if its second segment is not the one that follows the first, else 0.
PAIR_LABEL = "next"
#: Target of each token, removed when masks are drawn: the number of its word.
WORDS = "words"
#: Options of a task that masks tokens.
MaskUnit = Annotated[
    Literal["tokens", "words", "spans"],
    Field(
        description="What is masked together: single tokens, whole words, or spans of words "
        "(SpanBERT)."
    ),
]
MaskShare = Annotated[
    float, Field(gt=0, le=1, description="The share of tokens (or words) to be guessed.")
]
AsMask = Annotated[
    float, Field(ge=0, le=1, description="The share of those that become the mask token.")
]
AsRandom = Annotated[
    float,
    Field(ge=0, le=1, description="The share that become a random token; the rest stay."),
]
FindsWords = Annotated[
    Literal["tokenizer", "jieba"],
    Field(
        description="What finds words for masks of words and spans; jieba finds Chinese ones too "
        "(extra: zh)."
    ),
]
SpanP = Annotated[
    float, Field(gt=0, lt=1, description="spans: of the geometric distribution of their length.")
]
SpanMax = Annotated[int, Field(ge=1, description="spans: the longest, in words.")]


def check_masks(options: Any) -> None:
    """Check that the options of a task that masks tokens fit together.

    Raises:
        ValueError: they do not.
    """
    if options.as_mask + options.as_random > 1 + 1e-9:
        raise WrongValueError("as_mask and as_random are shares of a whole: together at most 1")
    if options.words == "jieba" and options.mask == "tokens":
        raise WrongValueError("words: jieba is for mask: words or mask: spans")


class MasksSequences(DrawsAnew, ReadsCorpus, UsesTokenizer):
    """Ability: reads texts, or a prepared corpus, as blocks in which `augment` masks tokens."""

    options: Any
    _tokenizer: Tokenizer | None = None
    _vocabulary: MaskVocabulary | None = None

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._vocabulary = tokenizer, None

    @property
    def vocabulary(self) -> MaskVocabulary:
        """The tokens that masks are made of; a CheckpointError if the tokenizer has no mask."""
        if self._vocabulary is None:
            self._vocabulary = MaskVocabulary.of(self.bound)
        return self._vocabulary

    @property
    def bound(self) -> Tokenizer:
        """The tokenizer of the model."""
        assert self._tokenizer is not None  # noqa: S101 - whoever loads a model binds it
        return self._tokenizer

    def masked_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """Tokenize some records into sequences for which `augment` draws masks."""
        self.bind(tokenizer)
        made = (self.sequence(*own) for own in self.segments_of(records, rows, tokenizer))
        # Where all tokens are special none can be masked.
        return (f for f in made if not self.vocabulary.special[f.tokens].all())

    def segments_of(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterator[tuple[list[SentenceTokens], int, int | None]]:
        """Yield the segments of each sequence, its record, and the label of a pair.

        Here a sequence is one segment without a label: as few blocks of a document as possible, all
        equally long, so that none is a mere stub.
        """
        texts = [records.text(row, "text") for row in rows]
        tokens = tokenize_sentences(texts, tokenizer, segmenter(self.options.words))
        for row, whole in zip(rows, tokens, strict=True):
            count = -(-len(whole) // (self.options.max_length - 2))
            edges = [len(whole) * i // max(count, 1) for i in range(count + 1)]
            yield from (([whole[a:b]], row, None) for a, b in pairwise(edges))

    def sequence(self, parts: list[SentenceTokens], row: int, label: int | None) -> Feature:
        """Make `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` of one segment or two."""
        first, end = required(self.bound, "cls_token"), required(self.bound, "sep_token")
        ids = np.concatenate([[first], *(x for part in parts for x in (part.ids, [end]))])
        # [CLS] belongs to the first segment, each [SEP] to the one before it.
        lengths = [len(part) + 1 for part in parts]
        segments = np.repeat(np.arange(len(parts)), [lengths[0] + 1, *lengths[1:]])
        targets: dict[str, Any] = {} if label is None else {PAIR_LABEL: label}
        if self.options.mask != "tokens":
            # A special token belongs to no word, and separates the words around it.
            between = np.array([-1], dtype=np.int32)
            numbers = (x for part in parts for x in (part.words, between))
            targets[WORDS] = np.concatenate([between, *numbers])
        return Feature(ids.tolist(), segments.tolist(), targets, row)

    @override
    def stored_features(
        self,
        documents: StoredDocuments,
        tokenizer: Tokenizer,
        *,
        evaluation: bool,
        progress: Callable[[int], None] | None,
    ) -> Features:
        """The sequences that `masked_features` makes of the documents' texts.

        Raises:
            DataError: the tokens do not show where words begin, or are all unknown.
        """
        tokens, digest = self.corpus_tokens(documents, tokenizer)
        room = self.options.max_length - 2
        return block_features(tokens, room, self.sequence, digest, progress)

    def corpus_tokens(
        self, documents: StoredDocuments, tokenizer: Tokenizer
    ) -> tuple[CorpusTokens, str]:
        """Return the tokens of a corpus, and what tells features of other ones apart.

        Raises:
            DataError: the tokens do not show where words begin.
        """
        self.bind(tokenizer)
        continues = None
        if self.options.mask != "tokens":
            continues = continuation_tokens(documents, tokenizer, self.options.words)
        key = f"{self.options.name} {self.options.model_dump_json()} {documents.fingerprint()}"
        tokens = CorpusTokens(documents, tokenizer.special_id("unk_token"), continues)
        return tokens, hashlib.sha256(key.encode()).hexdigest()

    @override
    def augment(self, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
        """Draw the masks of a batch that has none."""
        if MASKED in batch.targets:
            return batch
        words, options = batch.targets.get(WORDS), self.options
        drawn = draw_masks(
            batch.tokens.numpy(),
            np.array(batch.layout.lengths, dtype=np.int64),
            batch.index.numpy(),
            None if words is None else words.numpy(),
            MaskRule(
                *(options.mask, options.mask_share, options.as_mask, options.as_random),
                *(options.span_p, options.span_max),
            ),
            self.vocabulary,
            seed=seed,
            epoch=epoch,
        )
        targets = {name: value for name, value in batch.targets.items() if name != WORDS}
        targets[MASKED] = torch.from_numpy(drawn.labels)
        return replace(batch, tokens=torch.from_numpy(drawn.tokens), targets=targets)


def required(tokenizer: Tokenizer, name: str) -> int:
    """Return the id of a special token; a CheckpointError if the tokenizer has none."""
    token = tokenizer.special_id(name)
    if token is None:
        raise CheckpointError(
            f"the tokenizer has no {name.replace('_', ' ')}",
            "Only models of BERT's kind fill masks.",
        )
    return token
