"""The task `replaced_token`: a generator replaces tokens, and the model tells which (ELECTRA)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Feature, Features, PackedBatch
from pretune.data.masking import NOT_MASKED, draw_numbers
from pretune.data.records import Records
from pretune.models.backbone import Backbone
from pretune.models.config import ModelConfig
from pretune.models.families import build_head
from pretune.models.heads.replaced import Detection, join, smaller
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.base import (
    Loss,
    Prediction,
    Task,
    TaskOptions,
    published_architecture,
    usual_length,
)
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import CrossEntropyOptions, perplexity, sum_by_sequence
from pretune.tasks.masked_lm.masked_sequences import (
    MASKED,
    AsMask,
    AsRandom,
    FindsWords,
    MaskShare,
    MasksSequences,
    MaskUnit,
    SpanMax,
    SpanP,
    check_masks,
)
from pretune.tasks.two_models import TrainsCompanion
from pretune.tokenizers.tokenizer import Tokenizer

#: Target of each token, made when masks are drawn: the number in [0, 1) that draws its replacement.
DRAWS = "draws"


class ReplacedTokenOptions(CrossEntropyOptions):
    """Options of `replaced_token`; the smoothing and the z-loss are the generator's."""

    name: Literal["replaced_token"] = Field(
        "replaced_token",
        description="Tell which tokens a small generator replaced: ELECTRA's pre-training.",
    )
    mask: MaskUnit = "tokens"
    mask_share: MaskShare = 0.15
    # The generator reads 85 % of them as the mask token, the rest as they are.
    as_mask: AsMask = 0.85
    as_random: AsRandom = 0.0
    words: FindsWords = "tokenizer"
    span_p: SpanP = 0.2
    span_max: SpanMax = 10
    weight: float = Field(
        50.0,
        ge=0,
        allow_inf_nan=False,
        description="Of the loss of telling replaced tokens, beside that of the generator.",
    )
    generator_size: float = Field(
        0.25,
        gt=0,
        le=1,
        description="The width of the generator as a share of the model's; or its share of the "
        "layers, in families whose embeddings are as wide as their layers.",
    )
    share_embeddings: bool = Field(
        True, description="Whether both models have the same embeddings."
    )
    generator: str | None = Field(
        None, description="A model with a head for masked tokens to begin with; default: new."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_masks(self)
        return self


@dataclass(frozen=True)
class JudgedToken:
    """A token of a text, and how likely it was replaced."""

    text: str
    start: int  # its place in the text, in characters
    end: int
    score: float  # the probability that it was replaced


@dataclass(frozen=True)
class ReplacedPrediction(Prediction):
    """The tokens of a text that look replaced, in the order of the text.

    Attributes:
        tokens: all tokens of the text.
        count: how many to show, the likeliest; None: those that are likelier replaced than not.
    """

    tokens: tuple[JudgedToken, ...]
    count: int | None = None

    @property
    def replaced(self) -> list[JudgedToken]:
        """The tokens that are shown."""
        if self.count is None:
            return [token for token in self.tokens if token.score > 0.5]
        best = sorted(self.tokens, key=lambda token: -token.score)[: self.count]
        return sorted(best, key=lambda token: token.start)

    @override
    def to_dict(self) -> dict[str, Any]:
        return {"replaced": [asdict(token) for token in self.replaced]}

    @override
    def ranked(self) -> list[tuple[str, float]]:
        return [(f"{t.text}  [{t.start}:{t.end}]", t.score) for t in self.replaced]

    @override
    def top(self, count: int | None) -> Self:
        return self if count is None else replace(self, count=count)


class DetectReplaced(
    Task[ReplacedTokenOptions, ReplacedPrediction], MasksSequences, TrainsCompanion
):
    """Tells replaced tokens apart; trained as ELECTRA was (Clark et al. 2020, section 3.1).

    The generator, a small masked language model, draws a token for each mask from what it expects
    there. The model, which is the discriminator of the paper, reads the text with these tokens and
    tells for each of its tokens whether it is another one than before; where the generator drew the
    right token, it is not. Both learn at the same time, each from its own loss.
    """

    name: ClassVar[str] = "replaced_token"
    options_type: ClassVar[type[TaskOptions]] = ReplacedTokenOptions
    best_by: ClassVar[str] = "loss"
    inputs: ClassVar[dict[str, str]] = {"text": "the text"}
    companion_folder: ClassVar[str] = "generator"
    companion_head: ClassVar[str] = "masked_lm"

    # Preprocessor: blocks with masks, from texts or a prepared corpus, as for `mask_lm`.

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """Whole texts to judge; or, with targets, blocks for which `augment` draws masks."""
        if with_targets:
            yield from self.masked_features(records, rows, tokenizer)
            return
        self.bind(tokenizer)
        texts = [records.text(row, "text") for row in rows]
        encoded = tokenizer.encode(texts, max_length=self.options.max_length)
        for row, own in zip(rows, encoded, strict=True):
            yield Feature(own.ids, own.segments, {}, row, own.truncated)

    @override
    def augment(self, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
        """Draw the masks of a batch, and a number for each token that will choose another one."""
        masked = super().augment(batch, seed, epoch)
        lengths = np.array(batch.layout.lengths, dtype=np.int64)
        numbers = draw_numbers(lengths, batch.index.numpy(), seed=seed, epoch=epoch)
        targets = {**masked.targets, DRAWS: torch.from_numpy(numbers)}
        return replace(masked, targets=targets)

    # Head: the discriminator's; and the generator beside it.

    @property
    @override
    def head(self) -> str:
        return "replaced_tokens"

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, self.head, 1)

    @property
    @override
    def companion_source(self) -> str | None:
        return self.options.generator

    @override
    def companion_sizes(self, backbone: Backbone) -> ModelConfig:
        options = self.options
        return smaller(backbone, options.generator_size, shared=options.share_embeddings)

    @override
    def join(self, model: nn.Module, companion: nn.Module) -> None:
        join(model, companion, shared=self.options.share_embeddings)

    @override
    def forward(self, model: nn.Module, batch: PackedBatch) -> Detection:
        """Judge the tokens of texts; or, in a batch with masks, those that the generator leaves."""
        masks: dict[str, Any] = {}
        if MASKED in batch.targets:
            masks = {"labels": batch.targets[MASKED], "draws": batch.targets[DRAWS]}
            masks |= self.options.score_options
        told: Detection = model(batch, **masks)
        return told

    @override
    def loss(self, outputs: Detection, batch: PackedBatch) -> Loss:
        """The generator's cross-entropy plus `weight` times that of telling replaced tokens.

        The loss is counted in masked tokens. The mean of a sequence's own loss of telling counts
        once for each of its masks. So there is one count, which adds up over any parts of a batch;
        if all sequences are equally long and have equally many masks, it is ELECTRA's loss: the
        mean over the masked tokens plus `weight` times the mean over all tokens.
        """
        scores = _scores(outputs)
        told = (_telling(outputs) * _masks_per_token(batch)).sum()
        parts = {"generator_loss": scores.sum.detach(), "replaced_loss": told.detach()}
        own = self.options.loss_parts(scores)
        return Loss(scores.sum + self.options.weight * told, scores.count, {**own, **parts})

    # Answers: the tokens that look replaced.

    @override
    def predict(self, outputs: Detection, batch: PackedBatch) -> list[list[float]]:
        """Return the probabilities of the tokens of each sequence; none where some were masked."""
        if outputs.replaced is not None:
            return [[]] * batch.num_sequences
        scores = outputs.logits.float().sigmoid().cpu()
        return [part.tolist() for part in torch.split(scores, list(batch.layout.lengths))]

    @override
    def combine(
        self, parts: Sequence[list[float]], record: Mapping[str, Any]
    ) -> ReplacedPrediction:
        """Put the probabilities beside the tokens, special ones left out."""
        scores = [score for part in parts for score in part]
        if not scores:  # of an evaluation, whose texts are not as they were
            return self.empty_answer()
        text = str(record["text"])
        (encoded,) = self.bound.encode([text], max_length=self.options.max_length)
        judged = zip(encoded.offsets, scores, strict=True)
        return ReplacedPrediction(
            tuple(JudgedToken(text[a:b], a, b, score) for (a, b), score in judged if a < b)
        )

    @override
    def empty_answer(self) -> ReplacedPrediction:
        return ReplacedPrediction(())

    # Scorer.

    @override
    def metrics(self, features: Features | None = None) -> ReplacedMetrics:
        """Of the model: accuracy, precision, recall and F1; of the generator: accuracy and more."""
        return ReplacedMetrics()

    @override
    def each_loss(self, outputs: Detection, batch: PackedBatch) -> EachLoss:
        """Both losses of each sequence, counted in masked tokens as in `loss`."""
        layout = batch.where(batch.targets[MASKED] != NOT_MASKED).layout
        told = sum_by_sequence(_telling(outputs) * _masks_per_token(batch), batch.layout)
        guessed = sum_by_sequence(_scores(outputs).nats, layout)
        return EachLoss(guessed + self.options.weight * told, torch.tensor(layout.lengths))

    # Described.

    @override
    def config_entries(self) -> dict[str, Any]:
        # For families whose head for this is, in transformers, one for the classes of tokens.
        return {"id2label": {"0": "replaced"}, "label2id": {"replaced": 0}}

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """The task of transformers' `ElectraForPreTraining`."""
        if published_architecture(config) != "ElectraForPreTraining":
            return None
        return cls(ReplacedTokenOptions(max_length=usual_length(config, 512)))


def _scores(outputs: Detection) -> Scores:
    """Return the generator's scores; a ValueError where no token was masked."""
    if outputs.scores is None:
        raise ValueError("texts without masks can be judged, not scored")
    return outputs.scores


def _telling(outputs: Detection) -> Tensor:
    """Compute `[T]` the cross-entropy of telling whether each token was replaced, in float32."""
    assert outputs.replaced is not None  # noqa: S101 - there are scores, so there were masks
    logits = outputs.logits.float()
    return F.binary_cross_entropy_with_logits(logits, outputs.replaced.float(), reduction="none")


def _masks_per_token(batch: PackedBatch) -> Tensor:
    """Compute `[T]` the number of masks for each token of its sequence, such as 0.15."""
    masked = batch.where(batch.targets[MASKED] != NOT_MASKED).layout.lengths
    lengths = torch.tensor(batch.layout.lengths, dtype=torch.float32)
    shares = torch.tensor(masked, dtype=torch.float32) / lengths
    return shares.to(batch.tokens.device)[batch.owners]


class ReplacedMetrics:
    """Streaming figures over all masked tokens, and over all tokens that the model judged."""

    def __init__(self) -> None:
        self._nats = 0.0
        # Of the masked tokens how many there are and how many the generator knows; of all tokens
        # those that were replaced and look so, look so only, were replaced only, and the rest.
        self._guessed = np.zeros(2, dtype=np.int64)
        self._judged = np.zeros(4, dtype=np.int64)

    def update(self, outputs: Detection, batch: PackedBatch) -> None:
        """Take in one batch."""
        scores = _scores(outputs)
        assert outputs.replaced is not None  # noqa: S101 - there are scores, so there were masks
        self._nats += float(scores.cross_entropy)
        self._guessed += (scores.count, scores.right)
        looks, is_replaced = outputs.logits > 0, outputs.replaced
        kinds = 2 * (~is_replaced).long() + (~looks).long()
        hits, misses, alarms, rest = torch.bincount(kinds, minlength=4).tolist()
        self._judged += (hits, alarms, misses, rest)

    def merge(self, other: Self) -> None:
        """Add another's sums."""
        self._nats += other._nats
        self._guessed += other._guessed
        self._judged += other._judged

    def result(self) -> dict[str, float]:
        """Figures of the model, then of the generator."""
        hits, alarms, misses, rest = self._judged.tolist()
        count, right = self._guessed.tolist()
        return {
            "accuracy": (hits + rest) / max(hits + alarms + misses + rest, 1),
            "precision": hits / max(hits + alarms, 1),
            "recall": hits / max(hits + misses, 1),
            "f1": 2 * hits / max(2 * hits + alarms + misses, 1),
            "generator_accuracy": right / max(count, 1),
            "generator_perplexity": perplexity(self._nats, count),
        }

    def details(self) -> dict[str, Any]:
        """The number of tokens, of those that were masked, and of those that were replaced."""
        hits, _, misses, _ = self._judged.tolist()
        return {
            "tokens": int(self._judged.sum()),
            "masked": int(self._guessed[0]),
            "replaced": hits + misses,
        }
