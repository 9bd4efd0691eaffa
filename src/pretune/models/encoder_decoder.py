"""What models with an encoder and a decoder share, whatever their layers and positions are.

A batch has pairs: features of two sequences, the source and what the decoder reads of the target
(`PackedBatch.pairs`). Neither side has padding: each target's tokens look at those of its own
source, wherever both begin and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import ModelConfig
from pretune.models.heads.language import LanguageModelHead
from pretune.models.kv_cache import KVCache, SourceCache
from pretune.models.language_model import SequenceState
from pretune.models.layers import EncoderOutput, ModelOutput
from pretune.models.ops import pad_rows


class PairEmbeddings(Embeddings):
    """Turns sources and targets into their first hidden states."""

    def of_targets(self, batch: PackedBatch, longest: int) -> Tensor:
        """Embed targets, `[T, hidden]`; `longest` counts what earlier passes have read, too."""
        raise NotImplementedError


class EncoderDecoder(Backbone):
    """Pairs in, the decoder's last hidden states out.

    `layers` holds the encoder's layers, then the decoder's.

    Args:
        config: the sizes.
        embeddings: of both sides.
        encoder: its layers.
        decoder: its layers.
        norms: after the last layer of each; None where there is none.
    """

    embeddings: PairEmbeddings
    reads_pairs = True

    def __init__(
        self,
        config: ModelConfig,
        embeddings: PairEmbeddings,
        encoder: Sequence[nn.Module],
        decoder: Sequence[nn.Module],
        norms: Sequence[nn.Module | None] = (None, None),
    ) -> None:
        super().__init__(config, embeddings, [*encoder, *decoder], norms[1])
        self.source_norm = norms[0]
        self._depths = len(encoder), len(decoder)

    @property
    @override
    def stacks(self) -> tuple[int, ...]:
        return self._depths

    @override
    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        state: SequenceState | None = None,
    ) -> ModelOutput:
        """Run the model on pairs: `last_hidden_state` `[T, hidden]` of the targets' tokens.

        `select` picks rows of the targets. Other outputs are not supported, and a state only by
        `start` and `step` of the head.

        Raises:
            CheckpointError: the batch has no pairs, or an unsupported output was asked for.
        """
        if batch.choices is None or output_hidden_states or output_attentions or state is not None:
            raise CheckpointError(
                f"a {self.config.model_type} model reads pairs of a source and a target, and gives "
                "no hidden states or attention maps of single texts",
                "Use it to translate: pretune predict RUN TEXT.",
            )
        source, target = batch.pairs
        x = self.decode(target, self.encode(source))
        return ModelOutput(x if select is None else x[select.rows])

    def encode(self, batch: PackedBatch) -> EncoderOutput:
        """Run the encoder on sources."""
        x = pad_rows(self.embeddings(batch))
        for layer in list(self.layers)[: self.stacks[0]]:
            x = self.through(layer, x, batch.layout)
        return EncoderOutput(x if self.source_norm is None else self.source_norm(x), batch.layout)

    def decode(
        self, batch: PackedBatch, source: EncoderOutput | None, *, state: KVCache | None = None
    ) -> Tensor:
        """Run the decoder on targets: its last hidden states, `[T, hidden]`.

        `source` is the encoder's output; None if the cache `state`, which grows, has read it.
        """
        longest = max([batch.max_seqlen, *(state.lengths if state is not None else ())])
        x = pad_rows(self.embeddings.of_targets(batch, longest))
        for i, layer in enumerate(list(self.layers)[self.stacks[0] :]):
            kept: dict[str, Any] = {} if state is None else {"cache": state, "index": i}
            x = self.through(layer, x, batch.layout, source=source, **kept)
        return (x if self.final_norm is None else self.final_norm(x))[: batch.num_tokens]


class SourceReader(LanguageModelHead):
    """The next token of each target: a `LanguageModel` whose prompts are sources.

    It writes another text than it reads.
    """

    context_length = None  # positions continue without end
    backbone: EncoderDecoder

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""
        return self.backbone.config.target_vocab_size

    @property
    def opening(self) -> tuple[int, ...]:
        """The token that every target begins with."""
        config: Any = self.backbone.config
        return (config.decoder_start_token_id,)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, KVCache]:
        """Encode sources and read the start token of each target; see `LanguageModel.start`."""
        device = self.output_table().device
        source = self.backbone.encode(PackedBatch.of(prompts).to(device))
        count = self.backbone.stacks[1]
        cache = KVCache(count, SourceCache(count, len(prompts)))
        batch = PackedBatch.of([self.opening] * len(prompts)).to(device)
        hidden = self.backbone.decode(batch, source, state=cache)
        cache.lengths = list(batch.layout.lengths)
        return self._logits(hidden), cache

    def step(self, tokens: Tensor, state: KVCache) -> Tensor:
        """Read one token of each target; see `LanguageModel.step`."""
        return self._logits(self.backbone.decode(state.advance(tokens), None, state=state))

    def follow(
        self, more: Sequence[Sequence[int]], state: KVCache, *, every: bool = False
    ) -> Tensor:
        """Read several tokens of each target in one packed pass; see `LanguageModel.follow`."""
        batch = state.lengthen(more, self.output_table().device)
        hidden = self.backbone.decode(batch, None, state=state)
        return self._logits(hidden if every else hidden[batch.last.rows])
