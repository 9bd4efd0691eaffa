"""Masked tokens: BERT's pre-training, words that fit a gap, and how natural a text is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.masking import NOT_MASKED, MaskVocabulary, draw_masks, segmenter
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
from pretune.tasks.base import (
    DrawsAnew,
    Loss,
    Prediction,
    ReadsCorpus,
    Task,
    TaskOptions,
    UsesTokenizer,
    usual_length,
)
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import token_losses, with_perplexity
from pretune.tasks.masked_lm.metrics import (
    NEXT,
    TARGET,
    UNKNOWN,
    MaskLmMetrics,
    Outputs,
    token_scores,
)
from pretune.tasks.masked_lm.options import FEWEST, MaskLmOptions
from pretune.tasks.masked_lm.stored import stored_sequences, stored_words
from pretune.text.sentence_ends import sentence_spans
from pretune.tokenizers.tokenizer import Encoded, Tokenizer

#: Which word each token belongs to, for masks that cover whole ones.
WORDS = "words"


@dataclass(frozen=True)
class Candidate:
    """A token that fits a gap, with its probability."""

    token: str
    score: float


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """The candidates for each gap of a text, best first; gaps are filled independently."""

    gaps: tuple[tuple[Candidate, ...], ...]

    def ranked(self) -> list[tuple[str, float]]:
        """Every candidate; with its gap's number where there are several."""
        several = len(self.gaps) > 1
        return [
            (f"{number}: {candidate.token}" if several else candidate.token, candidate.score)
            for number, gap in enumerate(self.gaps, start=1)
            for candidate in gap
        ]

    def top(self, count: int | None) -> Self:
        """With so many candidates for each gap."""
        return replace(self, gaps=tuple(gap[:count] for gap in self.gaps))


class MaskLm(Task[MaskLmOptions, MaskPrediction], DrawsAnew, ReadsCorpus, UsesTokenizer):
    """Fills gaps; trained as BERT was (Devlin et al. 2019, section 3.1).

    Evaluated on masks drawn as in training, or by pseudo-perplexity (Salazar et al. 2020, equation
    3): there each token of a text is masked in turn, and the model asked for it.
    """

    name: ClassVar[str] = "mask_lm"
    options_type: ClassVar[type[TaskOptions]] = MaskLmOptions
    best_by: ClassVar[str] = "loss"

    def __init__(self, options: MaskLmOptions) -> None:
        super().__init__(options)
        self._tokenizer: Tokenizer | None = None
        self._vocabulary: MaskVocabulary | None = None

    @property
    def head(self) -> str:
        """BERT's two heads where sentences are learned too."""
        return "masked_lm" if self.options.next == "none" else "pretraining"

    @property
    def inputs(self) -> dict[str, str]:
        """`text`."""
        return {"text": "the text, with [MASK] for each gap"}

    def bind(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer, which has the words for the answers and the masks."""
        self._tokenizer, self._vocabulary = tokenizer, None

    def segments(self, tokenizer: Tokenizer) -> int:
        """One for each of a pair, whatever the tokenizer has for pairs."""
        return max(super().segments(tokenizer), 1 if self.options.next == "none" else 2)

    @property
    def vocabulary(self) -> MaskVocabulary:
        """What masks are made of.

        Raises:
            CheckpointError: the tokenizer has no mask token.
        """
        if self._vocabulary is None:
            assert self._tokenizer is not None  # noqa: S101 - whoever loads a model binds it
            self._vocabulary = MaskVocabulary.of(self._tokenizer)
        return self._vocabulary

    def fit(self, records: Records) -> None:
        """Nothing has to be known beforehand; but pairs need documents of several sentences.

        Raises:
            DataError: there is none.
        """
        texts = (records.text(row, "text") for row in range(len(records)))
        if self.options.next != "none" and all(len(sentence_spans(t)) < 2 for t in texts):
            raise DataError(
                f"{records.origin}: no record has two sentences, so none has a next one",
                f"A record is a document (task.next={self.options.next}); for single sentences "
                "set task.next=none.",
            )

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """A text with its gaps; or, with targets, what `augment` draws masks for.

        That is pairs of segments of a document, or, without `next`, the whole of a document in
        blocks of equal size, none of which reaches into another document.
        """
        self.bind(tokenizer)
        if with_targets:
            yield from self._for_training(records, rows, tokenizer)
            return
        mask = _needed(tokenizer, "mask_token")
        texts = [records.text(row, "text") for row in rows]
        encoded = tokenizer.encode(texts, max_length=self.options.max_length)
        for row, one in zip(rows, encoded, strict=True):
            gaps = [UNKNOWN if token == mask else -1 for token in one.ids]
            if UNKNOWN not in gaps:
                cut = f" in the first {self.options.max_length} tokens" if one.truncated else ""
                raise DataError(
                    f"{records.where(row, 'text')}: no [MASK]{cut}",
                    "Write [MASK] where a word is to be found.",
                )
            yield Feature(one.ids, one.segments, {TARGET: gaps}, row, one.truncated)

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """As in training; or one copy of a text for each token, masked there."""
        if self.options.evaluate == "masked":
            yield from self.features(records, rows, tokenizer, with_targets=True)
            return
        self.bind(tokenizer)
        texts = [records.text(row, "text") for row in rows]
        encoded = tokenizer.encode(texts, max_length=self.options.max_length)
        for row, one in zip(rows, encoded, strict=True):
            yield from _each_token_masked(one, row, self.vocabulary)

    def stored_features(
        self,
        documents: StoredDocuments,
        tokenizer: Tokenizer,
        *,
        evaluation: bool,
        progress: Callable[[int], None] | None,
    ) -> Features:
        """The same sequences, of the tokens on the disk.

        Raises:
            DataError: words cannot be told from the tokens, no document has two sentences, or each
                token is to be masked in turn.
        """
        if evaluation and self.options.evaluate == "each":
            raise DataError(
                f"{documents.origin}: task.evaluate=each reads texts, not a prepared corpus",
                "Give it texts with data.validation=FILE, or set task.evaluate=masked.",
            )
        self.bind(tokenizer)
        words = None
        if self.options.mask != "tokens":
            words = stored_words(documents, tokenizer, self.options.words)
        return stored_sequences(documents, tokenizer, self.options, words, self._one, progress)

    def _one(self, parts: list[SentenceTokens], row: int, targets: Mapping[str, int]) -> Feature:
        assert self._tokenizer is not None  # noqa: S101 - bound when the features were made
        (found,) = self._sequence(parts, row, self._tokenizer, targets)
        return found

    def _for_training(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        options = self.options
        segment = segmenter(options.words)
        if options.next == "none":
            texts = [records.text(row, "text") for row in rows]
            for row, whole in zip(rows, tokenize_sentences(texts, tokenizer, segment), strict=True):
                for block in _blocks(whole, options.max_length - 2):
                    yield from self._sequence([block], row, tokenizer)
            return
        documents = RecordDocuments(records, tokenizer, segment)
        room, short = options.max_length - 3, options.short_share
        maker = PairMaker(documents, kind=options.next, room=room, short=short)
        for row in rows:
            for copy in range(options.dupe):
                for pair in maker.pairs(row, copy):
                    parts = [pair.first, pair.second]
                    yield from self._sequence(parts, row, tokenizer, {NEXT: pair.label})

    def _sequence(
        self,
        parts: list[SentenceTokens],
        row: int,
        tokenizer: Tokenizer,
        targets: Mapping[str, int] | None = None,
    ) -> Iterable[Feature]:
        """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`; nothing where there is nothing to guess."""
        first, end = _needed(tokenizer, "cls_token"), _needed(tokenizer, "sep_token")
        ids = np.concatenate([[first], *(x for part in parts for x in (part.ids, [end]))])
        if self.vocabulary.special[ids].all():
            return
        lengths = [len(part) + 1 for part in parts]
        segments = np.repeat(np.arange(len(parts)), [lengths[0] + 1, *lengths[1:]])
        found: dict[str, Any] = dict(targets or {})
        if self.options.mask != "tokens":
            # What stands around special tokens is not one word, whatever its number.
            between = np.array([-1], dtype=np.int32)
            numbers = (x for part in parts for x in (part.words, between))
            found[WORDS] = np.concatenate([between, *numbers])
        yield Feature(ids.tolist(), segments.tolist(), found, row)

    def augment(self, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
        """Draw the masks, where they are not given: the features have none."""
        if TARGET in batch.targets:
            return batch
        words = batch.targets.get(WORDS)
        drawn = draw_masks(
            batch.tokens.numpy(),
            np.array(batch.layout.lengths, dtype=np.int64),
            batch.index.numpy(),
            None if words is None else words.numpy(),
            self.options.rule(),
            self.vocabulary,
            seed=seed,
            epoch=epoch,
        )
        targets = {name: value for name, value in batch.targets.items() if name != WORDS}
        targets[TARGET] = torch.from_numpy(drawn.labels)
        return replace(batch, tokens=torch.from_numpy(drawn.tokens), targets=targets)

    def build(self, backbone: Backbone) -> nn.Module:
        """Dense, activation, LayerNorm, and the embeddings as the output layer; and for `next` a
        linear map on the pooled output."""
        return build_head(backbone, self.head)

    def forward(self, model: nn.Module, batch: PackedBatch) -> Outputs:
        """Scores of the masked tokens: nothing is computed for the others in the last layer.

        Logits `[masked tokens, vocab]` where nobody knows what is masked. Of pairs with a label
        what both heads give.
        """
        select = batch.where(batch.targets[TARGET] != -1)
        more: dict[str, Any] = {"both": True} if NEXT in batch.targets else {}
        labels = batch.targets[TARGET][select.rows]
        if not bool((labels == UNKNOWN).any()):
            more |= {"labels": labels, **self.options.how}
        found: Outputs = model(batch, select=select, **more)
        return found

    def loss(self, outputs: Outputs, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in masked tokens.

        A sequence's cross-entropy of `next` counts once for each of its masked tokens. So there is
        one count, which adds up over any parts of a batch; and where all sequences have equally
        many masks it is BERT's loss, the mean over the masked tokens plus that over the sequences.
        """
        scores = token_scores(outputs)
        parts = self.options.parts_of(scores)
        if not isinstance(outputs, PreTrainingOutput):
            return Loss(scores.sum, scores.count, parts)
        labels = batch.targets[TARGET]
        each = F.cross_entropy(
            outputs.seq_relationship_logits.float(), batch.targets[NEXT], reduction="none"
        )
        before = F.pad((labels != -1).cumsum(0), (1, 0))
        masks = before[batch.cu_seqlens[1:].long()] - before[batch.cu_seqlens[:-1].long()]
        second = (each * masks).sum()
        shown = {"mask_loss": scores.sum.detach(), f"{self.options.next}_loss": second.detach()}
        return Loss(scores.sum + second, scores.count, {**parts, **shown})

    def each_loss(self, outputs: Outputs, batch: PackedBatch) -> EachLoss:
        """Cross-entropy of each sequence's masked tokens; `next` is no matter of tokens."""
        layout = batch.where(batch.targets[TARGET] != -1).layout
        return token_losses(token_scores(outputs), layout)

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss and (pseudo-)perplexity."""
        each = self.options.evaluate == "each"
        return with_perplexity(super().figures(sums), "pseudo_perplexity" if each else "perplexity")

    def combine(self, parts: Sequence[MaskPrediction], record: Mapping[str, Any]) -> MaskPrediction:
        """The gaps of all parts; an evaluated text is read once for each of its tokens."""
        return MaskPrediction(tuple(gap for part in parts for gap in part.gaps))

    def predict(self, outputs: Outputs, batch: PackedBatch) -> list[MaskPrediction]:
        """The best candidates for each gap."""
        if not isinstance(outputs, Tensor):
            return [MaskPrediction(())] * batch.num_sequences  # the truth is known: no gaps
        assert self._tokenizer is not None  # noqa: S101 - whoever loads a model binds it
        logits = outputs.float()
        scores, ids = logits.softmax(-1).topk(min(self.options.top_k, logits.shape[-1]))
        gaps = [
            tuple(
                Candidate(token, score)
                for token, score in zip(self._tokenizer.tokens(row), row_scores, strict=True)
            )
            for row, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        answers, start = [], 0
        for count in batch.where(batch.targets[TARGET] != -1).layout.lengths:
            answers.append(MaskPrediction(tuple(gaps[start : start + count])))
            start += count
        return answers

    def metrics(self, features: Features | None = None) -> MaskLmMetrics:
        """Perplexity (or pseudo-perplexity) and accuracy, and the accuracy of `next`."""
        if self.options.evaluate == "each":
            return MaskLmMetrics("pseudo_perplexity")
        return MaskLmMetrics("perplexity", self.options.next)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForMaskedLM` or `...ForPreTraining`."""
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith(("ForMaskedLM", "ForPreTraining")):
            return None
        length = usual_length(config, 512)
        # A pretraining head of any other family is not BERT's.
        both = architecture == "BertForPreTraining" and length >= FEWEST
        found = MaskLmOptions(max_length=length, next="nsp" if both else "none", evaluate="each")
        return cls(found)


def _needed(tokenizer: Tokenizer, name: str) -> int:
    """The id of a special token.

    Raises:
        CheckpointError: the tokenizer has no such token.
    """
    found = tokenizer.special_id(name)
    if found is None:
        raise CheckpointError(
            f"the tokenizer has no {name.replace('_', ' ')}",
            "Masks can be filled by BERT and its kin only.",
        )
    return found


def _blocks(whole: SentenceTokens, room: int) -> Iterable[SentenceTokens]:
    """A document in as few blocks as can be, all equally long, so that none is a mere stub."""
    count = -(-len(whole) // room)
    for i in range(count):
        yield whole[len(whole) * i // count : len(whole) * (i + 1) // count]


def _each_token_masked(one: Encoded, row: int, vocabulary: MaskVocabulary) -> Iterable[Feature]:
    for place, token in enumerate(one.ids):
        if vocabulary.special[token]:
            continue
        ids = [*one.ids[:place], vocabulary.mask, *one.ids[place + 1 :]]
        targets = [token if i == place else NOT_MASKED for i in range(len(ids))]
        yield Feature(ids, one.segments, {TARGET: targets}, row, one.truncated)
