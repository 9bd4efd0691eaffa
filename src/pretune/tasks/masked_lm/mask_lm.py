"""The task `mask_lm`: BERT's pre-training, words that fit a gap, and how natural a text is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch, Selection
from pretune.data.masking import NOT_MASKED, segmenter
from pretune.data.records import Records
from pretune.data.sentence_pairs import PairMaker, RecordDocuments, SentenceTokens
from pretune.errors import DataError, WrongValueError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.language import PreTrainingOutput
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.base import (
    Loss,
    Prediction,
    Task,
    TaskOptions,
    published_architecture,
    usual_length,
)
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.distillation.teachable import TeachableTokens
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import CrossEntropyOptions, perplexity, token_losses, with_perplexity
from pretune.tasks.masked_lm.corpus_sequences import pair_features
from pretune.tasks.masked_lm.masked_sequences import (
    MASKED,
    PAIR_LABEL,
    AsMask,
    AsRandom,
    FindsWords,
    MaskShare,
    MasksSequences,
    MaskUnit,
    SpanMax,
    SpanP,
    check_masks,
    required,
)
from pretune.text.sentence_ends import sentence_spans
from pretune.tokenizers.tokenizer import Encoded, Tokenizer

#: In `MASKED`: a gap whose token nobody knows.
UNKNOWN = -2
#: What stands for a missing word, whatever the mask token of a vocabulary is.
GAP = "[MASK]"
#: How transformers' classes with two pre-training heads were trained on pairs.
_PAIRS: dict[str, Literal["nsp", "sop"]] = {
    "BertForPreTraining": "nsp",
    "ErnieForPreTraining": "nsp",
    "AlbertForPreTraining": "sop",
}
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
    mask: MaskUnit = "tokens"
    mask_share: MaskShare = 0.15
    as_mask: AsMask = 0.8
    as_random: AsRandom = 0.1
    words: FindsWords = "tokenizer"
    span_p: SpanP = 0.2
    span_max: SpanMax = 10
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
        check_masks(self)
        if self.next != "none" and self.max_length < MIN_PAIR_TOKENS:
            raise WrongValueError(f"pairs need max_length: {MIN_PAIR_TOKENS} or more")
        return self


@dataclass(frozen=True)
class Candidate:
    """A token that fits a gap, with its probability.

    Attributes:
        token: the text that it stands for, such as ` word` or `##able`; not a vocabulary's `Ġword`.
        score: the probability.
    """

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


class MaskLm(Task[MaskLmOptions, MaskPrediction], MasksSequences, HasCertainty, TeachableTokens):
    """Fills gaps; trained as BERT was (Devlin et al. 2019, section 3.1).

    Evaluated on masks drawn as in training, or by pseudo-perplexity (Salazar et al. 2020, equation
    3): each token of a text is masked in turn, and the model predicts it from all others.
    """

    name: ClassVar[str] = "mask_lm"
    options_type: ClassVar[type[TaskOptions]] = MaskLmOptions
    best_by: ClassVar[str] = "loss"
    inputs: ClassVar[dict[str, str]] = {"text": f"the text, with {GAP} for each gap"}

    # Preprocessor: texts and prepared corpora to sequences.

    @override
    def segments(self, tokenizer: Tokenizer) -> int:
        """At least one for each segment of a pair, whatever the tokenizer does with pairs."""
        return max(super().segments(tokenizer), 1 if self.options.next == "none" else 2)

    @override
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        records.text(row, "text")

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
        if with_targets:
            yield from self.masked_features(records, rows, tokenizer)
            return
        self.bind(tokenizer)
        mask = required(tokenizer, "mask_token")
        for row, encoded in self._whole_texts(records, rows, tokenizer, gaps=True):
            gaps = [UNKNOWN if token == mask else NOT_MASKED for token in encoded.ids]
            if UNKNOWN not in gaps:
                cut = f" in the first {self.options.max_length} tokens" if encoded.truncated else ""
                raise DataError(
                    f"{records.where(row, 'text')}: no {GAP}{cut}",
                    f"Write {GAP} where a word is missing.",
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
        self, records: Records, rows: range, tokenizer: Tokenizer, *, gaps: bool = False
    ) -> Iterator[tuple[int, Encoded]]:
        """Records with their texts, each one sequence; `gaps` may have BERT's name."""
        texts = [records.text(row, "text") for row in rows]
        # Whoever knows a model of another vocabulary may write its own mask token all the same.
        if gaps and tokenizer.engine.token_to_id(GAP) is None:
            texts = [text.replace(GAP, tokenizer.special["mask_token"]) for text in texts]
        encoded = tokenizer.encode(texts, max_length=self.options.max_length)
        return zip(rows, encoded, strict=True)

    @override
    def segments_of(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterator[tuple[list[SentenceTokens], int, int | None]]:
        """Yield blocks; or pairs of segments, where each copy of the data is split into others."""
        options = self.options
        if options.next == "none":
            yield from super().segments_of(records, rows, tokenizer)
            return
        segment = segmenter(options.words)
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
        if evaluation and self.options.evaluate == "each":
            raise DataError(
                f"{documents.origin}: task.evaluate=each reads texts, not a prepared corpus",
                "Give it texts with data.validation=FILE, or set task.evaluate=masked.",
            )
        if self.options.next == "none":
            return super().stored_features(
                documents, tokenizer, evaluation=evaluation, progress=progress
            )
        tokens, digest = self.corpus_tokens(documents, tokenizer)
        maker = PairMaker(documents, **self._pair_options)
        return pair_features(tokens, maker, self.options.dupe, self.sequence, digest, progress)

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
            tuple(map(Candidate, map(self.bound.text_of, row), row_scores))
            for row, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        )
        # Give each sequence its own.
        counts = batch.where(batch.targets[MASKED] != NOT_MASKED).layout.lengths
        return [MaskPrediction(tuple(islice(gaps, count))) for count in counts]

    @override
    def certainty(
        self, outputs: MaskLmOutputs, batch: PackedBatch, answered: MaskLmOutputs
    ) -> Tensor:
        """Return the log-probability of the likeliest token of each gap."""
        assert isinstance(outputs, Tensor)  # noqa: S101 - there are gaps
        assert isinstance(answered, Tensor)  # noqa: S101
        best = answered.argmax(-1, keepdim=True)
        return outputs.float().log_softmax(-1).gather(-1, best).sum()

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
        """The task of a `...ForMaskedLM` of transformers, or of a class in `_PAIRS`."""
        architecture = published_architecture(config)
        if not architecture.endswith("ForMaskedLM") and architecture not in _PAIRS:
            return None
        length = usual_length(config, 512)
        both = length >= MIN_PAIR_TOKENS
        pairs = _PAIRS.get(architecture, "none") if both else "none"
        return cls(MaskLmOptions(max_length=length, next=pairs, evaluate="each"))


def token_scores(outputs: MaskLmOutputs) -> Scores:
    """The scores of masked tokens; a ValueError where nobody knows the token of a gap."""
    scores = outputs.predictions if isinstance(outputs, PreTrainingOutput) else outputs
    if isinstance(scores, Tensor):
        raise ValueError("gaps whose token nobody knows can be filled, not scored")
    return scores


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
