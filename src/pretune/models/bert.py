"""BERT (Devlin et al. 2019, arXiv:1810.04805), without padding.

Embeddings of token, segment and position are added; L post-norm Transformer layers follow; a pooler
(dense + tanh over the first token's last hidden state) gives one vector for the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.data import PackedBatch, Selection
from pretune.errors import CheckpointError, did_you_mean
from pretune.models.layers import (
    ACTIVATIONS,
    Dropout,
    Embedding,
    Linear,
    ModelOutput,
    PostNormLayer,
    sinusoidal_positions,
)
from pretune.models.ops import padded_rows

#: Names of `position_embedding_type` in config.json; "absolute" is what transformers calls learned.
POSITIONS = ("absolute", "sinusoidal")

#: The largest sizes believed: a broken or hostile config.json must not cost memory or minutes.
LARGEST = {
    "vocab_size": 10_000_000,
    "hidden_size": 65_536,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 65_536,
    "intermediate_size": 1_000_000,
    "max_position_embeddings": 1_000_000,
    "type_vocab_size": 256,
}


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT, under the names of `config.json`; the defaults are BERT-base's."""

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
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            self._check(name, int, 1, most)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            self._check(name, float, 0, 1)
            if getattr(self, name) == 1:
                raise CheckpointError(f"config: {name} must be in [0, 1): 1 leaves nothing")
        self._check("layer_norm_eps", float, 0, 1)
        self._check("initializer_range", float, 0, 100)
        self._check("pad_token_id", int, -1, LARGEST["vocab_size"])
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"config: hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if str(self.hidden_act) not in ACTIVATIONS:
            raise CheckpointError(
                f"config: unknown hidden_act '{self.hidden_act}'",
                did_you_mean(str(self.hidden_act), ACTIVATIONS),
            )
        self._check_positions()

    def _check(self, name: str, kind: type, least: int, most: int) -> None:
        value = getattr(self, name)
        kinds = (int, float) if kind is float else (int,)
        if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
            number = "number" if kind is float else "whole number"
            raise CheckpointError(
                f"config: {name} must be a {number} from {least} to {most:,}, not {value!r}"
            )

    def _check_positions(self) -> None:
        if self.position_embedding_type not in POSITIONS:
            raise CheckpointError(
                f"config: position_embedding_type '{self.position_embedding_type}' is unknown here",
                f"Supported: {', '.join(POSITIONS)}.",
            )
        # The table of sinusoids is the one thing that is computed, not read from a file.
        size = self.max_position_embeddings * self.hidden_size
        if self.position_embedding_type == "sinusoidal" and size > 2**28:
            raise CheckpointError(
                f"config: {self.max_position_embeddings:,} sinusoidal positions of "
                f"{self.hidden_size:,} numbers are more than a gigabyte"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BertConfig:
        """From the contents of a `config.json`; keys about other things are passed over.

        Raises:
            CheckpointError: a value makes no sense (not positive, heads that do not divide, ...),
                or it describes a decoder.
        """
        if values.get("is_decoder"):
            raise CheckpointError(
                "config: is_decoder is set: every token of this model sees only those before it",
                "Only encoders are supported.",
            )
        known = {item.name for item in fields(cls)}
        chosen = {key: value for key, value in values.items() if key in known and value is not None}
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`, with `model_type`."""
        return {"model_type": "bert", **asdict(self)}


class BertEmbeddings(nn.Module):
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


class BertModel(nn.Module):
    """The backbone: packed batch in, hidden states and pooled output out."""

    config_class = BertConfig

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(
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
        )
        self.pooler = Linear(config.hidden_size, config.hidden_size) if pooler else None
        self.init_weights()

    def init_weights(self, module: nn.Module | None = None) -> None:
        """Fresh weights as BERT's: normal(0, initializer_range); biases 0, LayerNorm 1 and 0.

        Args:
            module: only this part (a new head, say); default: all of the model. Parts on the meta
                device, which hold no values, are passed over.
        """
        for part in (module or self).modules():
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                continue
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=self.config.initializer_range)
                if isinstance(part, nn.Linear) and part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ModelOutput:
        """Run the encoder.

        Args:
            batch: token ids with their layout.
            select: compute the last layer for these rows only: what the head does not read need
                not exist. `pooler_output` needs the first row of each sequence to be among them
                and is left out otherwise.
            output_hidden_states: also give the 1 + L hidden states (excludes `select`).
            output_attentions: also give the L attention maps (excludes `select`).

        Raises:
            ValueError: `select` together with an output that needs all rows.
        """
        if select is not None and (output_hidden_states or output_attentions):
            raise ValueError("hidden states and attention maps are of all rows: leave out `select`")
        total = batch.num_tokens
        x = self.embeddings(batch)
        x = F.pad(x, (0, 0, 0, padded_rows(total, x.device) - total))
        hidden_states, attentions = [x], []
        for i, layer in enumerate(self.layers):
            if output_attentions:
                maps = layer.attention.maps  # type: ignore[union-attr]
                attentions.append(maps(x, batch.layout))  # type: ignore[operator]
            last = i == len(self.layers) - 1
            x = layer(x, batch.layout, select=select if last else None)
            hidden_states.append(x)
        if select is None:
            x = x[:total]
        return ModelOutput(
            last_hidden_state=x,
            pooler_output=self._pool(x, batch, select),
            hidden_states=tuple(h[:total] for h in hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _pool(self, x: Tensor, batch: PackedBatch, select: Selection | None) -> Tensor | None:
        if self.pooler is None or (select is not None and select is not batch.first):
            return None
        first = x if select is not None else x[batch.first.rows]
        return torch.tanh(self.pooler(first))
