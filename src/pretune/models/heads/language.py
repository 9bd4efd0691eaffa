"""Heads that predict tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch, Selection
from pretune.models.backbone import Backbone
from pretune.models.few_rows import FEW
from pretune.models.heads.vocabulary import Scores, SoftTargets, over_vocabulary, token_log_probs
from pretune.models.kv_cache import KVCache
from pretune.models.layers import ACTIVATIONS, Linear
from pretune.models.packed import PackedWeights, active


class LanguageModelHead(nn.Module):
    """A head whose outputs are the tokens of a vocabulary."""

    ties_output: bool = True  # whether the output layer is the table of token embeddings
    backbone: Backbone

    def __init__(self) -> None:
        super().__init__()
        self.packed = PackedWeights()  # of the output layer

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
        each: bool = False,
        temperature: float = 1.0,
        soft: SoftTargets | None = None,
        draws: Tensor | None = None,
    ) -> Any:
        """Predict a token at each position.

        Args:
            batch: packed texts.
            select: predict at these positions only.
            labels: `[T]`, or `[R]` with `select`: the right tokens. With them the predictions are
                scored, and the logits never exist all at once.
            smoothing: label smoothing, as for `score_tokens`.
            z_loss: weight of the z-loss, as for `score_tokens`.
            each: return the log-probability of each label, with its graph, instead of scores.
            temperature: with `each`, divides the logits.
            soft: what a teacher expects of the labelled tokens, as for `score_tokens`.
            draws: numbers by which a token is drawn for each label, as for `score_tokens`.

        Returns:
            logits `[T, vocab]`, or `[R, vocab]` with `select`; with `labels` the scores, or with
            `each` their log-probabilities, `[T]` or `[R]`.
        """
        hidden = self.backbone(batch, select=select).last_hidden_state
        how: dict[str, Any] = {"each": each, "temperature": temperature}
        how |= {"soft": soft, "draws": draws}
        return self.decode(hidden, labels, smoothing, z_loss, **how)

    def decode(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
        *,
        each: bool = False,
        temperature: float = 1.0,
        soft: SoftTargets | None = None,
        draws: Tensor | None = None,
    ) -> Tensor | Scores:
        """Map hidden states `[R, hidden]` to logits `[R, vocab]`; given `labels` to scores, or with
        `each` to their log-probabilities `[R]`, at a temperature."""
        table, bias = self.output_table(), self.output_bias()
        if each and labels is not None:
            bias = bias if bias is None else bias / temperature
            return token_log_probs(hidden / temperature, table, bias, labels)
        # A table that is laid out for few rows, as of the next tokens, where `packing` asks for it.
        how = active()
        if labels is None and how is not None and len(hidden) <= FEW:
            logits = self.packed.product(how, hidden, table, bias, slice(None))
            if logits is not None:
                return logits
        return over_vocabulary(hidden, table, bias, labels, smoothing, z_loss, soft, draws)

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.decode(hidden)
        assert isinstance(logits, Tensor)  # noqa: S101 - for mypy: no labels were given
        return logits

    def output_table(self) -> Tensor:
        """The matrix of the output layer, `[vocab, hidden]`."""
        return self.backbone.embeddings.tokens.weight

    def output_bias(self) -> Tensor | None:
        """The bias of the output layer, `[vocab]`."""
        return None

    def grow_output(self, added: int) -> None:
        """Make room for more tokens in what the output layer does not share with the backbone."""


class MaskedLM(LanguageModelHead):
    """Dense, activation, LayerNorm, then the tied output layer with a bias.

    BERT (Devlin et al. 2019), section 3.1, task 1.
    """

    def __init__(self, backbone: Backbone, activation: str, eps: float) -> None:
        super().__init__()
        # Embeddings may be narrower than hidden states.
        width = backbone.embeddings.tokens.weight.shape[1]
        self.backbone = backbone
        self.transform = Linear(backbone.config.size("hidden_size"), width)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(
            self.transform.weight.new_zeros(backbone.config.size("vocab_size"))
        )
        backbone.init_weights(self.transform)

    @override
    def decode(self, hidden: Tensor, *scoring: Any, **options: Any) -> Tensor | Scores:
        transformed = self.norm(self.activation(self.transform(hidden)))
        return super().decode(transformed, *scoring, **options)

    @override
    def output_bias(self) -> Tensor:
        return self.bias

    @override
    def grow_output(self, added: int) -> None:
        bias = self.bias.detach()
        self.bias = nn.Parameter(torch.cat([bias, bias.mean().expand(added)]))


@dataclass(frozen=True)
class PreTrainingOutput:
    """What BERT's two pre-training heads give.

    Attributes:
        predictions: logits `[T, vocab]` or `[R, vocab]`, or scores.
        seq_relationship_logits: `[B, 2]`: index 0 means that the second text follows the first.
    """

    predictions: Tensor | Scores
    seq_relationship_logits: Tensor


class CausalLM(LanguageModelHead):
    """The next token, by an output layer without a bias.

    A `LanguageModel`: it generates with `start` and `step`, and keeps keys and values in between.

    Args:
        backbone: a causal one.
        tied: whether the output layer is the table of token embeddings, or a matrix of its own.
    """

    opening = None  # generated text continues the prompt

    def __init__(self, backbone: Backbone, *, tied: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        self.ties_output = tied
        size, count = (backbone.config.size(name) for name in ("hidden_size", "vocab_size"))
        self.lm_head = None if tied else Linear(size, count, bias=False)
        if self.lm_head is not None:
            backbone.init_weights(self.lm_head)

    @override
    def output_table(self) -> Tensor:
        return super().output_table() if self.lm_head is None else self.lm_head.weight

    @override
    def grow_output(self, added: int) -> None:
        if self.lm_head is not None:
            self.lm_head.grow(added)

    @property
    def context_length(self) -> int:
        """The length of the table of positions."""
        return self.backbone.config.size("max_position_embeddings")

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""
        return self.backbone.config.size("vocab_size")

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KVCache]:
        """Read all prompts in one packed pass; see `LanguageModel.start`."""
        cache = KVCache(len(self.backbone.layers))
        batch = PackedBatch.of(prompts).to(self.output_table().device)
        output = self.backbone(batch, select=batch.last, state=cache)
        cache.lengths = list(batch.layout.lengths)
        return self._logits(output.last_hidden_state), cache

    def step(self, tokens: Tensor, state: KVCache) -> Tensor:
        """Read one token of each sequence; see `LanguageModel.step`."""
        return self._logits(self.backbone(state.advance(tokens), state=state).last_hidden_state)

    def follow(
        self, more: Sequence[Sequence[int]], state: KVCache, *, every: bool = False
    ) -> Tensor:
        """Read several tokens of each sequence in one packed pass; see `LanguageModel.follow`."""
        batch = state.lengthen(more, self.output_table().device)
        output = self.backbone(batch, select=None if every else batch.last, state=state)
        return self._logits(output.last_hidden_state)


class ActorCritic(CausalLM):
    """A `CausalLM` that also estimates what the reply will be worth, from the state before a token.

    Reinforcement learning trains the value, a linear map of the same hidden states, by `ppo`; a
    generator does without it.
    """

    def __init__(self, backbone: Backbone, *, tied: bool = True) -> None:
        super().__init__(backbone, tied=tied)
        self.value = Linear(backbone.config.size("hidden_size"), 1)
        backbone.init_weights(self.value)  # small: the first advantages are those of the rewards

    @override
    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        each: bool = False,
        **options: Any,
    ) -> Any:
        """Predict tokens as `LanguageModelHead.forward`; with `each` also the values: a pair of
        log-probabilities and values, `[T]` or `[R]`."""
        hidden = self.backbone(batch, select=select).last_hidden_state
        scored = self.decode(hidden, labels, each=each, **options)
        return (scored, self.values(hidden)) if each else scored

    def values(self, hidden: Tensor) -> Tensor:
        """Map hidden states `[R, hidden]` to values `[R]`, in float32.

        Row by row: a product with a single column adds up in another order for another R, and an
        advantage would depend on the batch that a reply was scored in.
        """
        values: Tensor = (hidden.float() * self.value.weight[0].float()).sum(-1) + self.value.bias
        return values
