"""BERT (Devlin et al. 2019, arXiv:1810.04805), without padding.

Embeddings of token, segment and position are added; L post-norm Transformer layers follow; a pooler
(dense + tanh over the first token's last hidden state) gives one vector for the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from pretune.data.batch import PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import LARGEST, ModelConfig, brief
from pretune.models.layers import Dropout, Embedding, Linear, PostNormLayer, sinusoidal_positions

#: Names of `position_embedding_type` in config.json; "absolute" is what transformers calls learned.
POSITIONS = ("absolute", "sinusoidal")


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    """The sizes of a BERT, under the names of `config.json`; the defaults are BERT-base's."""

    model_type: ClassVar[str] = "bert"
    dropout_names: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob",)
    attention_dropout_name: ClassVar[str] = "attention_probs_dropout_prob"
    activation_name: ClassVar[str] = "hidden_act"
    eps_name: ClassVar[str] = "layer_norm_eps"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"

    def __post_init__(self) -> None:
        self.check_common()
        self.check("pad_token_id", int, -1, LARGEST["vocab_size"])
        if self.position_embedding_type not in POSITIONS:
            raise CheckpointError(
                "config: position_embedding_type "
                f"'{brief(self.position_embedding_type)}' is unknown here",
                f"Supported: {', '.join(POSITIONS)}.",
            )
        if self.position_embedding_type == "sinusoidal":
            self.check_sinusoids()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the contents of a `config.json`; keys about other things are passed over.

        Raises:
            CheckpointError: a value makes no sense, or it describes a decoder.
        """
        if values.get("is_decoder"):
            raise CheckpointError(
                "config: is_decoder is set: every token of this model sees only those before it",
                "Only encoders are supported.",
            )
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`; `model_type` says whether transformers has such a model."""
        sinusoidal = self.position_embedding_type == "sinusoidal"
        kind = {"model_type": "bert-sinusoidal"} if sinusoidal else {}
        return {**super().to_dict(), **kind}


class BertEmbeddings(Embeddings):
    """LayerNorm(token + position + segment), then dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.tokens = Embedding(config.vocab_size, size)
        self.segments = Embedding(config.type_vocab_size, size)
        self.positions: Embedding | None = None
        if config.position_embedding_type == "absolute":
            self.positions = Embedding(config.max_position_embeddings, size)
        else:
            table = sinusoidal_positions(config.max_position_embeddings, size)
            self.register_buffer("sinusoids", table, persistent=False)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, batch: PackedBatch) -> Tensor:
        """`[T, hidden]`."""
        x = self.tokens(batch.tokens)
        if self.positions is not None:
            x = x + self.positions(batch.positions)
        else:
            x = x + self.get_buffer("sinusoids")[batch.positions]
        if batch.segments is not None:
            x = x + self.segments(batch.segments)
        else:
            x = x + self.segments.weight[0]
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded


class BertModel(Backbone):
    """The encoder: packed batch in, hidden states and pooled output out."""

    config_class = BertConfig
    config: BertConfig

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
        layers = [
            PostNormLayer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_act,
                dropout=config.hidden_dropout_prob,
                attention_dropout=config.attention_probs_dropout_prob,
                eps=config.layer_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        ]
        super().__init__(config, BertEmbeddings(config), layers)
        self.pooler = Linear(config.hidden_size, config.hidden_size) if pooler else None
        self.init_weights()

    def pool(self, x: Tensor, batch: PackedBatch, select: Selection | None) -> Tensor | None:
        """tanh(dense(the first token)); None where `select` lacks the first tokens."""
        if self.pooler is None or (select is not None and select is not batch.first):
            return None
        first = x if select is not None else x[batch.first.rows]
        return torch.tanh(self.pooler(first))
