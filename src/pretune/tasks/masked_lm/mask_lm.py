"""The task `mask_lm`: BERT's pre-training, words that fit a gap, and how natural a text is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch, Selection
from pretune.data.masking import NOT_MASKED, MaskRule, MaskVocabulary, draw_masks, segmenter
from pretune.data.records import Records
from pretune.data.sentence_pairs import (
    PairMaker,
    RecordDocuments,
    SentenceTokens,
    tokenize_sentences,
)
from pretune.errors import CheckpointError, DataError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.language import PreTrainingOutput
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.base import (
    DrawsAnew,
    Loss,
    Prediction,
    ReadsCorpus,
    Task,
    TaskOptions,
    UsesTokenizer,
    published_architecture,
    usual_length,
)
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.distillation.teachable import TeachableTokens
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import CrossEntropyOptions, perplexity, token_losses, with_perplexity
from pretune.tasks.masked_lm.corpus_sequences import (
    CorpusTokens,
    block_features,
    continuation_tokens,
    pair_features,
)
from pretune.text.sentence_ends import sentence_spans
from pretune.tokenizers.tokenizer import Encoded, Tokenizer

#: Target of each token: the token to guess there, `NOT_MASKED`, or `UNKNOWN`.
MASKED = "masked"
#: In `MASKED`: a gap whose token nobody knows.
UNKNOWN = -2
#: Target of a pair: 1 if its second segment is not the one that follows the first, else 0.
PAIR_LABEL = "next"
#: Target of each token, removed when masks are drawn: the number of its word.
WORDS = "words"
#: Tokens of the shortest pair: one of each segment, and the special ones.
MIN_PAIR_TOKENS = 5

#: Logits `[masked tokens, vocab]` where nobody knows what is masked, else scores; of pairs with a
#: label the outputs of both heads.
MaskLmOutputs = Tensor | Scores | PreTrainingOutput


class MaskLmOptions(CrossEntropyOptions):
    """Options of `mask_lm`."""

    name: Literal["mask_lm"] = Field(
        "mask_lm", description="Guess masked tokens: BERT's pre-training, and filling gaps."
    )
    top_k: int = Field(5, ge=1, le=1000, description="How many candidates to give for each gap.")
    mask: Literal["tokens", "words", "spans"] = Field(
        "tokens",
        description="What is masked together: single tokens, whole words, or spans of words "
        "(SpanBERT).",
    )
    mask_share: float = Field(
        0.15, gt=0, le=1, description="The share of tokens (or words) to be guessed."
    )
    as_mask: float = Field(
        0.8, ge=0, le=1, description="The share of those that become the mask token."
    )
    as_random: float = Field(
        0.1, ge=0, le=1, description="The share that become a random token; the rest stay."
    )
    words: Literal["tokenizer", "jieba"] = Field(
        "tokenizer",
        description="What finds words for masks of words and spans; jieba finds Chinese ones too "
        "(extra: zh).",
    )
    span_p: float = Field(
        0.2, gt=0, lt=1, description="spans: of the geometric distribution of their length."
    )
    span_max: int = Field(10, ge=1, description="spans: the longest, in words.")
    next: Literal["none", "nsp", "sop"] = Field(
        "none",
        description="A second thing to learn, from pairs of segments: nsp: does the second follow "
        "the first (BERT); sop: are they in order (ALBERT). A record is a document.",
    )
    short_share: float = Field(
        0.1, ge=0, le=1, description="nsp, sop: the share of pairs that are shorter at random."
    )
    dupe: int = Field(
        1, ge=1, description="nsp, sop: copies of the data, each split into other pairs."
    )
    evaluate: Literal["masked", "each"] = Field(
        "masked",
        description="masked: as in training, with masks that are always the same; each: mask each "
        "token in turn (pseudo-perplexity), which takes as many passes as there are tokens.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.as_mask + self.as_random > 1 + 1e-9:
            raise ValueError("as_mask and as_random are shares of a whole: together at most 1")
        if self.words == "jieba" and self.mask == "tokens":
            raise ValueError("words: jieba is for mask: words or mask: spans")
        if self.next != "none" and self.max_length < MIN_PAIR_TOKENS:
            raise ValueError(f"pairs need max_length: {MIN_PAIR_TOKENS} or more")
        return self


@dataclass(frozen=True)
class Candidate:
    """A token that fits a gap, with its probability."""

    token: str
    score: float


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """The candidates for each gap of a text, best first; each gap is filled independently."""

    gaps: tuple[tuple[Candidate, ...], ...]

    @override
    def ranked(self) -> list[tuple[str, float]]:
        several = len(self.gaps) > 1
        return [
            (f"{number}: {candidate.token}" if several else candidate.token, candidate.score)
            for number, gap in enumerate(self.gaps, start=1)
            for candidate in gap
        ]

    @override
    def top(self, count: int | None) -> Self:
        return replace(self, gaps=tuple(gap[:count] for gap in self.gaps))


class MaskLm(
    Task[MaskLmOptions, MaskPrediction],
    DrawsAnew,
    HasCertainty,
    ReadsCorpus,
    UsesTokenizer,
    TeachableTokens,
):
    """Fills gaps; trained as BERT was (Devlin et al. 2019, section 3.1).

    Evaluated on masks drawn as in training, or by pseudo-perplexity (Salazar et al. 2020, equation
    3): each token of a text is masked in turn, and the model predicts it from all others.
    """

    name: ClassVar[str] = "mask_lm"
    options_type: ClassVar[type[TaskOptions]] = MaskLmOptions
    best_by: ClassVar[str] = "loss"
    inputs: ClassVar[dict[str, str]] = {"text": "the text, with [MASK] for each gap"}

    def __init__(self, options: MaskLmOptions) -> None:
        super().__init__(options)
        self._tokenizer: Tokenizer | None = None
        self._vocabulary: MaskVocabulary | None = None

    # Preprocessor: texts and prepared corpora to sequences.

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._vocabulary = tokenizer, None

    @property
    def vocabulary(self) -> MaskVocabulary:
        """The tokens that masks are made of; a CheckpointError if the tokenizer has no mask."""
        if self._vocabulary is None:
            self._vocabulary = MaskVocabulary.of(self._bound)
        return self._vocabulary

    @property
    def _bound(self) -> Tokenizer:
        assert self._tokenizer is not None  # noqa: S101 - whoever loads a model binds it
        return self._tokenizer

    @override
    def segments(self, tokenizer: Tokenizer) -> int:
        """At least one for each segment of a pair, whatever the tokenizer does with pairs."""
        return max(super().segments(tokenizer), 1 if self.options.next == "none" else 2)

    @override
    def fit(self, records: Records) -> None:
        """Check that pairs can be made.

        Raises:
            DataError: no document has two sentences.
        """
        texts = (records.text(row, "text") for row in range(len(records)))
        if self.options.next != "none" and all(len(sentence_spans(t)) < 2 for t in texts):
            raise DataError(
                f"{records.origin}: no record has two sentences, so none has a next one",
                f"A record is a document (task.next={self.options.next}); for single sentences "
                "set task.next=none.",
            )

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """Texts with gaps; or, with targets, sequences for which `augment` draws masks.

        Those are pairs of segments of a document; or, without `next`, blocks of equal size that
        make up the document and do not reach into another.
        """
        self.bind(tokenizer)
        if with_targets:
            made = (self._sequence(*own) for own in self._segments(records, rows, tokenizer))
            # Where all tokens are special none can be masked.
            yield from (f for f in made if not self.vocabulary.special[f.tokens].all())
            return
        mask = _required(tokenizer, "mask_token")
        for row, encoded in self._whole_texts(records, rows, tokenizer):
            gaps = [UNKNOWN if token == mask else NOT_MASKED for token in encoded.ids]
            if UNKNOWN not in gaps:
                cut = f" in the first {self.options.max_length} tokens" if encoded.truncated else ""
                raise DataError(
                    f"{records.where(row, 'text')}: no [MASK]{cut}",
                    "Write [MASK] where a word is missing.",
                )
            yield Feature(encoded.ids, encoded.segments, {MASKED: gaps}, row, encoded.truncated)

    @override
    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """As in training; or one copy of a text for each of its tokens, which is masked."""
        if self.options.evaluate == "masked":
            yield from self.features(records, rows, tokenizer, with_targets=True)
            return
        self.bind(tokenizer)
        special, mask = self.vocabulary.special, self.vocabulary.mask
        # Salazar et al. 2020, section 2.2: the text is read once for each token that can be masked.
        for row, encoded in self._whole_texts(records, rows, tokenizer):
            ids = encoded.ids
            for place, token in enumerate(ids):
                if special[token]:
                    continue
                labels = {MASKED: [token if i == place else NOT_MASKED for i in range(len(ids))]}
                masked = [*ids[:place], mask, *ids[place + 1 :]]
                yield Feature(masked, encoded.segments, labels, row, encoded.truncated)

    def _whole_texts(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterator[tuple[int, Encoded]]:
        """Records with their texts, each one sequence."""
        texts = [records.text(row, "text") for row in rows]
        encoded = tokenizer.encode(texts, max_length=self.options.max_length)
        return zip(rows, encoded, strict=True)

    def _segments(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterator[tuple[list[SentenceTokens], int, int | None]]:
        """The segments of each sequence, its record, and the label of a pair."""
        options = self.options
        segment = segmenter(options.words)
        # As few blocks as possible, all equally long, so that none is a mere stub.
        if options.next == "none":
            texts = [records.text(row, "text") for row in rows]
            tokens = tokenize_sentences(texts, tokenizer, segment)
            for row, whole in zip(rows, tokens, strict=True):
                count = -(-len(whole) // (options.max_length - 2))
                edges = [len(whole) * i // max(count, 1) for i in range(count + 1)]
                yield from (([whole[a:b]], row, None) for a, b in pairwise(edges))
            return
        # Pairs of segments; each copy of the data is split into others.
        maker = PairMaker(RecordDocuments(records, tokenizer, segment), **self._pair_options)
        for row, copy in product(rows, range(options.dupe)):
            for pair in maker.pairs(row, copy):
                yield [pair.first, pair.second], row, pair.label

    @property
    def _pair_options(self) -> dict[str, Any]:
        """Options of `PairMaker`; of the maximum length 3 tokens are special."""
        options = self.options
        return {"kind": options.next, "room": options.max_length - 3, "short": options.short_share}

    def _sequence(self, parts: list[SentenceTokens], row: int, label: int | None) -> Feature:
        """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` of one segment or two."""
        first, end = _required(self._bound, "cls_token"), _required(self._bound, "sep_token")
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
        """The sequences that `features` makes of the documents' texts.

        Raises:
            DataError: `evaluate` is `each`, the tokens do not show where words begin, or no
                document has two sentences.
        """
        options = self.options
        if evaluation and options.evaluate == "each":
            raise DataError(
                f"{documents.origin}: task.evaluate=each reads texts, not a prepared corpus",
                "Give it texts with data.validation=FILE, or set task.evaluate=masked.",
            )
        self.bind(tokenizer)
        continues = None
        if options.mask != "tokens":
            continues = continuation_tokens(documents, tokenizer, options.words)
        tokens = CorpusTokens(documents, tokenizer.special_id("unk_token"), continues)
        key = f"mask_lm {options.model_dump_json()} {documents.fingerprint()}"
        digest = hashlib.sha256(key.encode()).hexdigest()
        if options.next == "none":
            return block_features(tokens, options.max_length - 2, self._sequence, digest, progress)
        maker = PairMaker(documents, **self._pair_options)
        return pair_features(tokens, maker, options.dupe, self._sequence, digest, progress)

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

    # Head: BERT's output layer; for `next` also a linear map on the pooled output.

    @property
    @override
    def head(self) -> str:
        return "masked_lm" if self.options.next == "none" else "pretraining"

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, self.head)

    @override
    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> MaskLmOutputs:
        """Score the masked tokens: the last layer computes nothing for the others."""
        select = self.scored_tokens(batch)
        labels = batch.targets[MASKED][select.rows]
        options: dict[str, Any] = {"both": True} if PAIR_LABEL in batch.targets else {}
        options |= more
        if not bool((labels == UNKNOWN).any()):
            options |= {"labels": labels, **self.options.score_options}
        outputs: MaskLmOutputs = model(batch, select=select, **options)
        return outputs

    @override
    def loss(self, outputs: MaskLmOutputs, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in masked tokens.

        The cross-entropy of a pair counts once for each masked token of the pair. So there is one
        count, which adds up over any parts of a batch; if all sequences have equally many masks, it
        is BERT's loss: the mean over the masked tokens plus the mean over the sequences.
        """
        # The masked tokens.
        scores = token_scores(outputs)
        parts = self.options.loss_parts(scores)
        if not isinstance(outputs, PreTrainingOutput):
            return Loss(scores.sum, scores.count, parts)
        # The pairs, each as often as it has masked tokens.
        each = F.cross_entropy(
            outputs.seq_relationship_logits.float(), batch.targets[PAIR_LABEL], reduction="none"
        )
        before = F.pad((batch.targets[MASKED] != NOT_MASKED).cumsum(0), (1, 0))
        masks = before[batch.cu_seqlens[1:].long()] - before[batch.cu_seqlens[:-1].long()]
        pairs = (each * masks).sum()
        shown = {"mask_loss": scores.sum.detach(), f"{self.options.next}_loss": pairs.detach()}
        return Loss(scores.sum + pairs, scores.count, {**parts, **shown})

    # Learning from a teacher

    @override
    def scored_tokens(self, batch: PackedBatch) -> Selection:
        return batch.where(batch.targets[MASKED] != NOT_MASKED)

    @override
    def token_scores(self, outputs: MaskLmOutputs) -> Scores:
        return token_scores(outputs)

    # Answers: candidates for each gap.

    @override
    def predict(self, outputs: MaskLmOutputs, batch: PackedBatch) -> list[MaskPrediction]:
        if not isinstance(outputs, Tensor):
            return [MaskPrediction(())] * batch.num_sequences  # the tokens are known: no gaps
        # The likeliest tokens of all gaps of the batch, which lie end to end.
        logits = outputs.float()
        scores, ids = logits.softmax(-1).topk(min(self.options.top_k, logits.shape[-1]))
        gaps = (
            tuple(map(Candidate, self._bound.tokens(row), row_scores))
            for row, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        )
        # Give each sequence its own.
        counts = batch.where(batch.targets[MASKED] != NOT_MASKED).layout.lengths
        return [MaskPrediction(tuple(islice(gaps, count))) for count in counts]

    @override
    def certainty(self, outputs: MaskLmOutputs, batch: PackedBatch) -> Tensor:
        """Return the log-probability of the likeliest token of each gap."""
        assert isinstance(outputs, Tensor)  # noqa: S101 - there are gaps
        return outputs.float().log_softmax(-1).amax(-1).sum()

    @override
    def combine(self, parts: Sequence[MaskPrediction], record: Mapping[str, Any]) -> MaskPrediction:
        """The gaps of all parts: a text is evaluated as one sequence for each of its tokens."""
        return MaskPrediction(tuple(gap for part in parts for gap in part.gaps))

    @override
    def empty_answer(self) -> MaskPrediction:
        return MaskPrediction(())

    # Scorer.

    @property
    def _perplexity(self) -> str:
        return "pseudo_perplexity" if self.options.evaluate == "each" else "perplexity"

    @override
    def metrics(self, features: Features | None = None) -> MaskLmMetrics:
        """Perplexity (or pseudo-perplexity), accuracy, and the accuracy on pairs."""
        pairs = "none" if self.options.evaluate == "each" else self.options.next
        return MaskLmMetrics(self._perplexity, pairs)

    @override
    def each_loss(self, outputs: MaskLmOutputs, batch: PackedBatch) -> EachLoss:
        """Cross-entropy of each sequence's masked tokens, pairs left out."""
        layout = batch.where(batch.targets[MASKED] != NOT_MASKED).layout
        return token_losses(token_scores(outputs), layout)

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        return with_perplexity(super().figures(sums), self._perplexity)

    # Described.

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """The task of a `...ForMaskedLM` or `...ForPreTraining` of transformers."""
        architecture = published_architecture(config)
        if not architecture.endswith(("ForMaskedLM", "ForPreTraining")):
            return None
        length = usual_length(config, 512)
        # Only BERT's pretraining head has pairs like ours.
        both = architecture == "BertForPreTraining" and length >= MIN_PAIR_TOKENS
        pairs: Literal["nsp", "none"] = "nsp" if both else "none"
        return cls(MaskLmOptions(max_length=length, next=pairs, evaluate="each"))


def token_scores(outputs: MaskLmOutputs) -> Scores:
    """The scores of masked tokens; a ValueError where nobody knows the token of a gap."""
    scores = outputs.predictions if isinstance(outputs, PreTrainingOutput) else outputs
    if isinstance(scores, Tensor):
        raise ValueError("gaps whose token nobody knows can be filled, not scored")
    return scores


def _required(tokenizer: Tokenizer, name: str) -> int:
    """The id of a special token; a CheckpointError if the tokenizer has none."""
    token = tokenizer.special_id(name)
    if token is None:
        raise CheckpointError(
            f"the tokenizer has no {name.replace('_', ' ')}",
            "Only models of BERT's kind fill masks.",
        )
    return token


class MaskLmMetrics:
    """Streaming figures over all masked tokens that are known, and over all pairs.

    `perplexity` is the name of exp of the mean loss, `pairs` is `nsp`, `sop` or `none`.
    """

    def __init__(self, perplexity: str = "perplexity", pairs: str = "none") -> None:
        self._perplexity, self._kind, self._nats = perplexity, pairs, 0.0
        # Tokens and pairs: how many there are, and how many are right.
        self._tokens, self._pairs = np.zeros((2, 2), dtype=np.int64)

    def update(self, outputs: MaskLmOutputs, batch: PackedBatch) -> None:
        """Take in one batch."""
        scores = token_scores(outputs)
        self._nats += float(scores.cross_entropy)
        self._tokens += (scores.count, scores.right)
        if isinstance(outputs, PreTrainingOutput):
            labels = batch.targets[PAIR_LABEL]
            right = int((outputs.seq_relationship_logits.argmax(-1) == labels).sum())
            self._pairs += (len(labels), right)

    def merge(self, other: Self) -> None:
        """Add another's sums."""
        self._nats += other._nats
        self._tokens += other._tokens
        self._pairs += other._pairs

    def result(self) -> dict[str, float]:
        """Exp of the mean negative log-probability; `accuracy`; `nsp_accuracy` (or `sop_`)."""
        (count, right), (pairs, right_pairs) = self._tokens.tolist(), self._pairs.tolist()
        value = perplexity(self._nats, count)
        figures = {self._perplexity: value, "accuracy": right / max(count, 1)}
        if self._kind != "none":
            figures[f"{self._kind}_accuracy"] = right_pairs / max(pairs, 1)
        return figures

    def details(self) -> dict[str, Any]:
        """The number of masked tokens, and of pairs."""
        pairs = {} if self._kind == "none" else {"pairs": int(self._pairs[0])}
        return {"tokens": int(self._tokens[0]), **pairs}
