"""The task `causal_lm`: predict the next token, from left to right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, Layout, PackedBatch, Selection
from pretune.data.records import Records, is_missing
from pretune.errors import CheckpointError, WrongValueError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.vocabulary import Scores
from pretune.models.language_model import StatefulLM
from pretune.tasks.base import (
    CarriesState,
    Loss,
    Prediction,
    ReadsCorpus,
    ReadsStream,
    ReadsWindows,
    Task,
    no_text,
    published_architecture,
    usual_length,
)
from pretune.tasks.causal_lm.blocks import stored_blocks, stream_blocks, text_stream
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.distillation.teachable import TeachableTokens
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import (
    IGNORED,
    NEXT,
    CrossEntropyOptions,
    perplexity,
    token_losses,
    with_perplexity,
)
from pretune.tokenizers.tokenizer import Tokenizer


class CausalLmOptions(CrossEntropyOptions):
    """Options of `causal_lm`."""

    name: Literal["causal_lm"] = Field("causal_lm", description="The next token, left to right.")
    boundaries: bool = Field(
        True,
        description="Whether blocks end where texts end, so that no token sees another text; false "
        "cuts one endless stream of texts into blocks, as GPT-2 did.",
    )
    carry_state: bool | None = Field(
        None,
        description="Whether each block starts from the state after the one before: truncated "
        "back-propagation through time. Default: where the model keeps a state (rnn, gru, lstm, "
        "nnlm).",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="In evaluations and predictions each block begins this many tokens after the "
        "one before and predicts only what that one did not: with less than max_length, tokens "
        "have at least max_length - stride others before them, except in the first block of a "
        "text. Default: blocks do not overlap.",
    )

    @model_validator(mode="after")
    def _reaches_every_token(self) -> Self:
        if self.stride is not None and self.stride > self.max_length:
            raise WrongValueError(
                f"a stride of {self.stride} is more than max_length, {self.max_length}: tokens "
                "between two blocks would not be predicted"
            )
        return self


@dataclass(frozen=True)
class LmPrediction(Prediction):
    """How probable a text is to the model.

    Attributes:
        tokens: how many were predicted.
        log_probability: the sum over these tokens, in nats.
        perplexity: exp of the mean negative log-probability; None without tokens.
    """

    tokens: int
    log_probability: float
    perplexity: float | None

    @classmethod
    def of(cls, tokens: int, nats: float) -> Self:
        """Make it from the number of tokens and their cross-entropy."""
        return cls(tokens, -nats, perplexity(nats, tokens) if tokens else None)


class CausalLm(
    Task[CausalLmOptions, LmPrediction],
    CarriesState,
    HasCertainty,
    ReadsCorpus,
    ReadsStream,
    ReadsWindows,
    TeachableTokens,
):
    """Predicts each token from those before it in its block; evaluated by perplexity and bits.

    Where the tokenizer has an end of text (`<|endoftext|>`, `[SEP]`), a text is `END tokens END`:
    its first token is predicted from an end, and the end of the text from its last token.
    """

    name: ClassVar[str] = "causal_lm"
    options_type: ClassVar[type[CausalLmOptions]] = CausalLmOptions
    head: ClassVar[str] = "causal_lm"
    best_by: ClassVar[str] = "loss"
    inputs: ClassVar[dict[str, str]] = {"text": "a text"}

    # Preprocessor: blocks of texts and of prepared corpora.

    @override
    def without_text(self, row: Mapping[str, Any], *, with_targets: bool) -> bool:
        """Whether a text is empty; spaces and line ends are text to learn."""
        text = row.get("text")
        return is_missing(text) or (not with_targets and no_text(text))

    @override
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        records.text(row, "text")

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """Blocks of at most `max_length` tokens, with the token that follows each."""
        texts: Iterable[Array]
        texts = (text_stream(records.text(row, "text"), tokenizer, row) for row in rows)
        if not self.options.boundaries:
            texts = [np.concatenate([*texts], axis=1)]
        step = self._step(evaluation=not with_targets)
        for text in texts:
            yield from stream_blocks(text, self.options.max_length, step)

    @override
    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """The same blocks; with `stride` they overlap."""
        return self.features(records, rows, tokenizer, with_targets=False)

    def _step(self, *, evaluation: bool) -> int:
        """How many tokens after the block before a block begins."""
        stride = self.options.stride if evaluation else None
        return self.options.max_length if stride is None else stride

    @override
    def stored_features(
        self,
        documents: StoredDocuments,
        tokenizer: Tokenizer,
        *,
        evaluation: bool,
        progress: Callable[[int], None] | None,
    ) -> Features:
        options, step = self.options, self._step(evaluation=evaluation)
        return stored_blocks(documents, tokenizer, options.max_length, step, options.boundaries)

    @override
    def isolated(self) -> Self:
        return type(self)(self.options.model_copy(update={"boundaries": True}))

    # Head: the family's own output layer.

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        """Build the model.

        Raises:
            CheckpointError: `carry_state`, and the model keeps no state; or `stride`, and it does.
        """
        kind = backbone.config.model_type
        if self.options.stride is not None and not backbone.has_attention:
            raise CheckpointError(
                f"task.stride: a {kind} carries its state from block to block, so no block needs "
                "to read tokens again",
                "Leave it out.",
            )
        if self.options.carry_state and backbone.has_attention:
            raise CheckpointError(
                f"task.carry_state: a {kind} keeps no state from block to block",
                "Leave it out, or train a model that does: model.from=lstm-small (or rnn-small, "
                "gru-small, nnlm).",
            )
        return build_head(backbone, "causal_lm")

    @override
    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> Scores:
        """Score the token that follows each; `more` is for the model."""
        # Blocks that are trained on do not overlap: all their tokens are predicted.
        select = None if model.training else self._predicted(batch)
        labels = batch.targets[NEXT]
        if select is not None:
            labels = labels[select.rows]
        options = {**self.options.score_options, **more}
        scores: Scores = model(batch, select=select, labels=labels, **options)
        return scores

    @override
    def loss(self, outputs: Scores, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in tokens."""
        return Loss(outputs.sum, outputs.count, self.options.loss_parts(outputs))

    def _predicted(self, batch: PackedBatch) -> Selection | None:
        """The tokens whose next one the block before did not predict; None: all."""
        if self.options.stride is None:
            return None
        return batch.where(batch.targets[NEXT] != IGNORED)

    def _layout(self, batch: PackedBatch) -> Layout:
        """How many tokens are predicted in each block."""
        select = self._predicted(batch)
        return batch.layout if select is None else select.layout

    # Learning from a teacher

    @override
    def scored_tokens(self, batch: PackedBatch) -> Selection | None:
        return self._predicted(batch)

    @override
    def token_scores(self, outputs: Scores) -> Scores:
        return outputs

    # CarriesState: models that keep a state read a text block by block.

    @override
    def follows(self, model: nn.Module, features: Features) -> Array | None:
        """The blocks of a text but the first; without `boundaries` all blocks but the first."""
        if self.options.carry_state is False or not isinstance(model, StatefulLM):
            return None
        return features.continues if self.options.boundaries else np.arange(len(features)) > 0

    @override
    def carry(self, model: nn.Module, batch: PackedBatch, state: Any) -> tuple[Scores, Any]:
        scores = self.forward(model, batch, state=state)
        return scores, scores.state

    # Answers: how probable a text is.

    @override
    def usage(self, run: str) -> str:
        return f"pretune generate {run} --prompt TEXT"

    @override
    def predict(self, outputs: Scores, batch: PackedBatch) -> list[LmPrediction]:
        layout = self._layout(batch)
        each = zip(layout.lengths, outputs.each(layout), strict=True)
        return [LmPrediction.of(tokens, nats) for tokens, nats in each]

    @override
    def certainty(self, outputs: Scores, batch: PackedBatch, answered: Scores) -> Tensor:
        """Return the log-probability of the text."""
        return -outputs.sum

    @override
    def combine(self, parts: Sequence[LmPrediction], record: Mapping[str, Any]) -> LmPrediction:
        """How probable the whole text is, each block from its own beginning on."""
        nats = -sum(part.log_probability for part in parts)
        return LmPrediction.of(sum(part.tokens for part in parts), nats)

    # Scorer.

    @override
    def metrics(self, features: Features | None = None) -> CausalLmMetrics:
        return CausalLmMetrics()

    @override
    def each_loss(self, outputs: Scores, batch: PackedBatch) -> EachLoss:
        return token_losses(outputs, self._layout(batch))

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        return with_perplexity(super().figures(sums))

    # Described.

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """The task of a `...LMHeadModel` of transformers, or of one of our own classics."""
        if not published_architecture(config).endswith(("LMHeadModel", "ForCausalLM")):
            return None
        return cls(CausalLmOptions(max_length=usual_length(config, 1024)))


class CausalLmMetrics:
    """Streaming figures over all predicted tokens."""

    def __init__(self) -> None:
        self._nats = 0.0
        # Tokens that were predicted, those predicted right, and their characters and bytes.
        self._counts = np.zeros(4, dtype=np.int64)

    def update(self, outputs: Scores, batch: PackedBatch) -> None:
        """Take in one batch."""
        self._nats += float(outputs.cross_entropy)
        sizes = (int(batch.targets[name].sum()) for name in ("chars", "bytes"))
        self._counts += (outputs.count, outputs.right, *sizes)

    def merge(self, other: Self) -> None:
        """Add another's sums."""
        self._nats += other._nats
        self._counts += other._counts

    def result(self) -> dict[str, float]:
        """`perplexity` per token; `bits_per_character` and `bits_per_byte`, which do not depend on
        the tokenizer; `accuracy`: how often the most probable token is the one that follows."""
        tokens, right, chars, size = self._counts.tolist()
        bits = self._nats / math.log(2)
        return {
            "perplexity": perplexity(self._nats, tokens),
            "bits_per_character": bits / max(chars, 1),
            "bits_per_byte": bits / max(size, 1),
            "accuracy": right / max(tokens, 1),
        }

    def details(self) -> dict[str, Any]:
        """The numbers of predicted tokens, characters and bytes."""
        tokens, _, chars, size = self._counts.tolist()
        return {"tokens": tokens, "characters": chars, "bytes": size}
