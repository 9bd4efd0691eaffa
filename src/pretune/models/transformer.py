"""The Transformer (Vaswani et al. 2017): an encoder reads a source, a decoder writes a target.

A batch has pairs: features of two sequences, the source and what the decoder reads of the target
(`PackedBatch.pairs`). Neither side has padding: each target's tokens look at those of its own
source, wherever both begin and end.

What is saved is in the layout of transformers' Marian, which is this model: LayerNorm after each
sum, sinusoids, one table of the vocabulary for the source, the target and the output, or one for
the source and one for the others. Where LayerNorm comes first transformers has no such model, and
`config.json` says `transformer` instead of `marian`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.data.batch import PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import LARGEST, ModelConfig
from pretune.models.kv_cache import KVCache
from pretune.models.language_model import SequenceState
from pretune.models.layers import (
    CrossAttention,
    Dropout,
    Embedding,
    FeedForward,
    ModelOutput,
    PostNormLayer,
    PreNormLayer,
    SelfAttention,
    Source,
    sinusoidal_positions,
)
from pretune.models.ops import padded_rows

#: Added to the variance in each LayerNorm; transformers' Marian does not say it.
EPS = 1e-5


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The sizes, under the names of Marian's `config.json`; the defaults are Marian's.

    `SIZES` has those of the paper.
    """

    model_type: ClassVar[str] = "marian"
    names: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
    }
    dropout_names: ClassVar[tuple[str, ...]] = ("dropout",)
    attention_dropout_name: ClassVar[str] = "attention_dropout"
    activation_name: ClassVar[str] = "activation_function"

    vocab_size: int = 58101
    decoder_vocab_size: int | None = None
    d_model: int = 1024
    encoder_layers: int = 12
    decoder_layers: int = 12
    encoder_attention_heads: int = 16
    decoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    decoder_ffn_dim: int = 4096
    activation_function: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    max_position_embeddings: int = 1024
    scale_embedding: bool = False
    normalize_before: bool = False
    share_encoder_decoder_embeddings: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int = 0
    pad_token_id: int = 58100
    decoder_start_token_id: int = 58100
    forced_eos_token_id: int | None = 0

    def __post_init__(self) -> None:
        if self.share_encoder_decoder_embeddings:  # one table has one size
            object.__setattr__(self, "decoder_vocab_size", None)
        self.check_common()
        for name in ("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"):
            usual = {"decoder_layers": "num_hidden_layers", "decoder_ffn_dim": "intermediate_size"}
            self.check(name, int, 1, LARGEST[usual.get(name, "num_attention_heads")])
        if self.d_model % self.decoder_attention_heads:
            raise CheckpointError(
                f"config: d_model {self.d_model} is not divisible by decoder_attention_heads "
                f"{self.decoder_attention_heads}"
            )
        if self.decoder_vocab_size is not None:
            self.check("decoder_vocab_size", int, 1, LARGEST["vocab_size"])
        for name in ("decoder_start_token_id", "eos_token_id"):
            self.check(name, int, 0, self.target_size - 1)
        for item in fields(self):
            if item.type == "bool" and not isinstance(getattr(self, item.name), bool):
                raise CheckpointError(f"config: {item.name} must be true or false")
        self.check_sinusoids()
        if not self.tie_word_embeddings:
            raise CheckpointError(
                "config: tie_word_embeddings is false",
                "The output layer is always the table of the target's vocabulary.",
            )

    @property
    def target_size(self) -> int:
        """How many entries the vocabulary of the targets has."""
        return self.decoder_vocab_size or self.vocab_size

    def size(self, name: str) -> int:
        """As `ModelConfig.size`; layers are those of both stacks."""
        if name == "num_hidden_layers":
            return self.encoder_layers + self.decoder_layers
        return super().size(name)

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`; `model_type` says whether transformers has such a model."""
        kind = {"model_type": "transformer"} if self.normalize_before else {}
        return {**super().to_dict(), **kind, "is_encoder_decoder": True}


class TransformerEmbeddings(Embeddings):
    """Token x sqrt(hidden) + sinusoid, then dropout (sections 3.4 and 3.5).

    `targets` is None where source and target share one table.
    """

    sinusoids: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.d_model
        self.tokens = Embedding(config.vocab_size, size)
        shared = config.share_encoder_decoder_embeddings
        self.targets = None if shared else Embedding(config.target_size, size)
        self.scale = math.sqrt(size) if config.scale_embedding else 1.0
        table = sinusoidal_positions(config.max_position_embeddings, size, interleaved=False)
        self.register_buffer("sinusoids", table, persistent=False)
        self.dropout = Dropout(config.dropout)

    @property
    def output(self) -> Tensor:
        """`[vocab, hidden]`: the table of the target's vocabulary, the output layer too."""
        return (self.tokens if self.targets is None else self.targets).weight

    def forward(self, batch: PackedBatch) -> Tensor:
        """`[T, hidden]` of sources."""
        return self._placed(self.tokens, batch, batch.max_seqlen)

    def of_targets(self, batch: PackedBatch, longest: int) -> Tensor:
        """`[T, hidden]` of targets of at most so many tokens, those of earlier passes included."""
        return self._placed(self.targets or self.tokens, batch, longest)

    def _placed(self, table: Embedding, batch: PackedBatch, longest: int) -> Tensor:
        if longest > len(self.sinusoids):  # they never end
            more = sinusoidal_positions(2 * longest, self.sinusoids.shape[1], interleaved=False)
            self.sinusoids = more.to(self.sinusoids)
        x = table(batch.tokens) * self.scale + self.sinusoids[batch.positions]
        embedded: Tensor = self.dropout(x)
        return embedded


class TransformerModel(Backbone):
    """Pairs in, the decoder's last hidden states out.

    `layers` has those of the encoder, then those of the decoder.
    """

    config_class = TransformerConfig
    config: TransformerConfig
    embeddings: TransformerEmbeddings

    def __init__(self, config: TransformerConfig) -> None:
        kind = PreNormLayer if config.normalize_before else PostNormLayer
        common: dict[str, Any] = {
            "dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "eps": EPS,
        }
        heads, inner = config.encoder_attention_heads, config.encoder_ffn_dim
        encoder = [
            kind(config.d_model, heads, inner, config.activation_function, **common)
            for _ in range(config.encoder_layers)
        ]
        heads, inner = config.decoder_attention_heads, config.decoder_ffn_dim
        common |= {"causal": True, "cross": True}
        decoder = [
            kind(config.d_model, heads, inner, config.activation_function, **common)
            for _ in range(config.decoder_layers)
        ]
        # Where LayerNorm comes first, what a stack gives would otherwise never meet one.
        norms = [
            nn.LayerNorm(config.d_model, eps=EPS) if config.normalize_before else None
            for _ in range(2)
        ]
        super().__init__(config, TransformerEmbeddings(config), [*encoder, *decoder], norms[1])  # type: ignore[arg-type]
        self.source_norm = norms[0]
        self.init_weights()

    @property
    def stacks(self) -> tuple[int, ...]:
        """The encoder's layers and the decoder's."""
        return self.config.encoder_layers, self.config.decoder_layers

    def init_weights(self, module: nn.Module | None = None) -> None:
        """As `Backbone`'s; but matrices are uniform with the variance 2 / (in + out) (Glorot &
        Bengio 2010, equation 16), and a row of an embedding has a length of about 1."""
        super().init_weights(module)
        for part in (module or self).modules():
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                continue
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=self.config.d_model**-0.5)
            elif isinstance(part, SelfAttention | CrossAttention):
                # Query, key and value are a matrix each, though they are stored as one.
                for matrix in part.parameters():
                    for one in torch.split(matrix, matrix.shape[-1]):
                        _glorot(one)
            elif isinstance(part, FeedForward):
                for matrix in part.parameters():
                    _glorot(matrix)

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        state: SequenceState | None = None,
    ) -> ModelOutput:
        """Run the model on pairs.

        Args:
            batch: of pairs.
            select: give these rows only, of those of the targets.
            output_hidden_states: not offered, and
            output_attentions: neither.
            state: none: `start` and `step` of the head keep one.

        Returns:
            `last_hidden_state` `[T, hidden]` of the targets' tokens.

        Raises:
            CheckpointError: the batch has no pairs, or what is not offered was asked for.
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

    def encode(self, batch: PackedBatch) -> Source:
        """What the decoder looks at."""
        x = self.embeddings(batch)
        total = batch.num_tokens
        x = F.pad(x, (0, 0, 0, padded_rows(total, x.device) - total))
        for layer in list(self.layers)[: self.config.encoder_layers]:
            x = self.through(layer, x, batch.layout)
        return Source(x if self.source_norm is None else self.source_norm(x), batch.layout)

    def decode(
        self,
        batch: PackedBatch,
        source: Source | None,
        *,
        state: KVCache | None = None,
    ) -> Tensor:
        """`[T, hidden]`: the decoder's last hidden states.

        Args:
            batch: of targets.
            source: what they look at; None where `state` has read it.
            state: keys and values go there.
        """
        longest = max([batch.max_seqlen, *(state.lengths if state is not None else ())])
        x = self.embeddings.of_targets(batch, longest)
        total = batch.num_tokens
        x = F.pad(x, (0, 0, 0, padded_rows(total, x.device) - total))
        for i, layer in enumerate(list(self.layers)[self.config.encoder_layers :]):
            kept: dict[str, Any] = {} if state is None else {"cache": state, "index": i}
            x = self.through(layer, x, batch.layout, source=source, **kept)
        return (x if self.final_norm is None else self.final_norm(x))[:total]


def _glorot(parameter: Tensor) -> None:
    if parameter.ndim == 2 and not parameter.is_meta:
        nn.init.xavier_uniform_(parameter)
