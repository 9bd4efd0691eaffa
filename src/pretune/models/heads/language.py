"""Heads that say which token stands where: masked tokens, BERT's pre-training, the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.models import ops
from pretune.models.backbone import Backbone
from pretune.models.bert import BertModel
from pretune.models.gpt2 import Gpt2Model
from pretune.models.heads.vocabulary import Scores, over_vocabulary
from pretune.models.kv_cache import KVCache
from pretune.models.layers import ACTIVATIONS, Linear


class MaskedLM(nn.Module):
    """Dense, activation, LayerNorm, then the vocabulary's own table as the output layer.

    BERT's section 3.1, task 1; the decoder is tied to the token embeddings and has a bias.
    """

    def __init__(self, backbone: Backbone, activation: str, eps: float) -> None:
        super().__init__()
        size = backbone.config.size("hidden_size")
        self.backbone = backbone
        self.transform = Linear(size, size)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(size, eps=eps)
        self.bias = nn.Parameter(
            self.transform.weight.new_zeros(backbone.config.size("vocab_size"))
        )
        backbone.init_weights(self.transform)

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor | Scores:
        """Which token stands where.

        Args:
            batch: of texts with gaps.
            select: these tokens alone.
            labels: `[T]` or `[R]` what does stand there: score that, instead of giving all logits.
            smoothing: as `score_tokens`', and
            z_loss: likewise.

        Returns:
            logits `[T, vocab]`, or `[R, vocab]` of the selected tokens; with `labels` the scores.
        """
        hidden = self.backbone(batch, select=select).last_hidden_state
        return self.decode(hidden, labels, smoothing, z_loss)

    def decode(
        self, hidden: Tensor, labels: Tensor | None, smoothing: float, z_loss: float
    ) -> Tensor | Scores:
        """`[R, hidden]` to logits `[R, vocab]`, or to scores."""
        transformed = self.norm(self.activation(self.transform(hidden)))
        table = self.backbone.embeddings.tokens.weight
        return over_vocabulary(transformed, table, self.bias, labels, smoothing, z_loss)


@dataclass(frozen=True)
class PreTrainingOutput:
    """What BERT's two pre-training tasks give.

    Attributes:
        predictions: logits `[T, vocab]` or `[R, vocab]`, or scores.
        seq_relationship_logits: `[B, 2]`: index 0 means that the second text follows the first.
    """

    predictions: Tensor | Scores
    seq_relationship_logits: Tensor


class BertPreTraining(MaskedLM):
    """BERT's two heads: masked tokens, and whether one text follows the other (section 3.1)."""

    def __init__(self, backbone: BertModel) -> None:
        super().__init__(backbone, backbone.config.hidden_act, backbone.config.layer_norm_eps)
        self.relationship = Linear(backbone.config.hidden_size, 2)
        backbone.init_weights(self.relationship)

    @overload
    def forward(
        self,
        batch: PackedBatch,
        *,
        both: Literal[False] = False,
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor | Scores: ...

    @overload
    def forward(
        self,
        batch: PackedBatch,
        *,
        both: Literal[True],
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> PreTrainingOutput: ...

    def forward(
        self,
        batch: PackedBatch,
        *,
        both: bool = False,
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor | Scores | PreTrainingOutput:
        """Masked tokens alone, as `MaskedLM`; or both heads on one pass.

        Args:
            batch: for `both`, of pairs.
            both: what to give.
            select: the tokens to predict, the first of a sequence not among them; default all.
            labels: as `MaskedLM`'s.
            smoothing: likewise, and
            z_loss: likewise.
        """
        if not both:
            return super().forward(
                batch, select=select, labels=labels, smoothing=smoothing, z_loss=z_loss
            )
        if select is None:
            output = self.backbone(batch)
            hidden, pooled = output.last_hidden_state, output.pooler_output
        else:
            rows, order = torch.cat([batch.first.rows, select.rows]).sort()
            layout = Layout.of([1 + count for count in select.layout.lengths], rows.device)
            found = self.backbone(batch, select=Selection(rows, layout)).last_hidden_state
            # Where each came to lie; unlike a mask, places need no wait for the device.
            places = order.argsort()
            first, others = places[: batch.num_sequences], places[batch.num_sequences :]
            hidden = found[others]
            pooled = self.backbone.pool(found[first], batch, batch.first)
        predictions = self.decode(hidden, labels, smoothing, z_loss)
        return PreTrainingOutput(predictions, self.relationship(pooled))


class CausalLM(nn.Module):
    """The next token, by the vocabulary's own table as the output layer, without bias.

    A `LanguageModel`: with `start` and `step` it generates, keeping keys and values in between.

    Class attributes:
        opening: None: what is written goes on from what was read.
    """

    opening = None

    def __init__(self, backbone: Gpt2Model) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor | Scores:
        """What follows each token.

        Args:
            batch: of texts.
            select: only what follows these tokens.
            labels: `[T]` what does follow: score that, instead of giving all logits.
            smoothing: as `score_tokens`', and
            z_loss: likewise.

        Returns:
            logits `[T, vocab]`, or `[R, vocab]` of the selected tokens; with `labels` the scores.
        """
        hidden = self.backbone(batch, select=select).last_hidden_state
        table = self.backbone.embeddings.tokens.weight
        return over_vocabulary(hidden, table, None, labels, smoothing, z_loss)

    def _decode(self, hidden: Tensor) -> Tensor:
        return ops.linear(hidden, self.backbone.embeddings.tokens.weight)

    @property
    def context_length(self) -> int:
        """As `LanguageModel`'s: the table of positions ends there."""
        return self.backbone.config.size("max_position_embeddings")

    @property
    def vocab_size(self) -> int:
        """As `LanguageModel`'s."""
        return self.backbone.config.size("vocab_size")

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KVCache]:
        """As `LanguageModel.start`: one pass over all prompts, packed."""
        cache = KVCache(len(self.backbone.layers))
        batch = PackedBatch.of(prompts).to(self.backbone.embeddings.tokens.weight.device)
        output = self.backbone(batch, select=batch.last, state=cache)
        cache.lengths = list(batch.layout.lengths)
        return self._decode(output.last_hidden_state), cache

    def step(self, tokens: Tensor, state: KVCache) -> Tensor:
        """As `LanguageModel.step`: one row a sequence."""
        return self._decode(self.backbone(state.advance(tokens), state=state).last_hidden_state)

    def follow(
        self, more: Sequence[Sequence[int]], state: KVCache, *, every: bool = False
    ) -> Tensor:
        """As `LanguageModel.follow`: one pass over all new tokens, packed."""
        batch = state.lengthen(more, self.backbone.embeddings.tokens.weight.device)
        output = self.backbone(batch, select=None if every else batch.last, state=state)
        return self._decode(output.last_hidden_state)
