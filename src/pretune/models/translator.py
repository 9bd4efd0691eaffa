"""A Transformer that writes: the next token of a target, by the vocabulary's own table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretune.data.batch import PackedBatch, Selection
from pretune.models import ops
from pretune.models.heads.vocabulary import Scores, over_vocabulary
from pretune.models.kv_cache import KVCache, SourceCache
from pretune.models.transformer import TransformerModel


class Translator(nn.Module):
    """The next token of each target, as transformers' `MarianMTModel`.

    A `LanguageModel`: what it is begun with are sources, and what it writes is another text.

    Class attributes:
        context_length: None, as sinusoids never end.
    """

    context_length = None

    def __init__(self, backbone: TransformerModel) -> None:
        super().__init__()
        self.backbone = backbone
        # Published models have one, and transformers does not train it. Ours have zeros.
        bias = torch.zeros(1, backbone.config.target_size)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor | Scores:
        """What follows each token of the targets.

        Args:
            batch: of pairs; a target is the start token and all but the last of its tokens.
            select: only what follows these tokens, of the T of the targets.
            labels: `[T]` what does follow: score that, instead of giving all logits.
            smoothing: as `score_tokens`', and
            z_loss: likewise.

        Returns:
            logits `[T, vocab]`, or `[R, vocab]` of the selected tokens; with `labels` the scores.
        """
        hidden = self.backbone(batch, select=select).last_hidden_state
        table = self.backbone.embeddings.output
        return over_vocabulary(hidden, table, self._bias, labels, smoothing, z_loss)

    @property
    def _bias(self) -> Tensor:
        return self.bias[0]

    @property
    def vocab_size(self) -> int:
        """As `LanguageModel`'s."""
        return self.backbone.config.target_size

    @property
    def opening(self) -> tuple[int, ...]:
        """As `LanguageModel`'s."""
        return (self.backbone.config.decoder_start_token_id,)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KVCache]:
        """As `LanguageModel.start`: encodes sources, and reads the start token of each target."""
        device = self.bias.device
        source = self.backbone.encode(PackedBatch.of(prompts).to(device))
        count = self.backbone.config.decoder_layers
        cache = KVCache(count, SourceCache(count, len(prompts)))
        batch = PackedBatch.of([self.opening] * len(prompts)).to(device)
        hidden = self.backbone.decode(batch, source, state=cache)
        cache.lengths = list(batch.layout.lengths)
        return self._decode(hidden), cache

    def step(self, tokens: Tensor, state: KVCache) -> Tensor:
        """As `LanguageModel.step`: one row a sequence."""
        return self._decode(self.backbone.decode(state.advance(tokens), None, state=state))

    def follow(
        self, more: Sequence[Sequence[int]], state: KVCache, *, every: bool = False
    ) -> Tensor:
        """As `LanguageModel.follow`: one pass over all new tokens, packed."""
        batch = state.lengthen(more, self.bias.device)
        hidden = self.backbone.decode(batch, None, state=state)
        return self._decode(hidden if every else hidden[batch.last.rows])

    def _decode(self, hidden: Tensor) -> Tensor:
        return ops.linear(hidden, self.backbone.embeddings.output, self._bias)
