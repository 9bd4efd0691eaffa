"""The Transformer (Vaswani et al. 2017): an encoder reads a source, a decoder writes a target.

Checkpoints have the layout of transformers' Marian, which is this model: LayerNorm after each sum,
sinusoids, and one table of the vocabulary for source, target and output, or one for the source and
one for the other two. transformers has no such model with LayerNorm first: there `config.json` says
`transformer` instead of `marian`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.config import MAX_SIZES, ModelConfig
from pretune.models.encoder_decoder import EncoderDecoder, PairEmbeddings, SourceReader
from pretune.models.family import Family, HeadLayout, Rule, rules
from pretune.models.layers import (
    CrossAttention,
    Dropout,
    Embedding,
    FeedForward,
    PostNormLayer,
    PreNormLayer,
    SelfAttention,
    sinusoidal_positions,
)

#: Added to the variance in each LayerNorm: PyTorch's default, which transformers' Marian uses.
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The sizes, under the names of Marian's `config.json`; the defaults are Marian's."""

    model_type: ClassVar[str] = "marian"
    names: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "intermediate_size": "encoder_ffn_dim",
    }
    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
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
        # `check_common` covers the encoder; the decoder has sizes of its own.
        self.check_common()
        for name in ("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"):
            usual = {"decoder_layers": "num_hidden_layers", "decoder_ffn_dim": "intermediate_size"}
            self.check(name, int, 1, MAX_SIZES[usual.get(name, "num_attention_heads")])
        if self.d_model % self.decoder_attention_heads:
            raise CheckpointError(
                f"config: d_model {self.d_model} is not divisible by decoder_attention_heads "
                f"{self.decoder_attention_heads}"
            )
        if self.decoder_vocab_size is not None:
            self.check("decoder_vocab_size", int, 1, MAX_SIZES["vocab_size"])
        for name in ("decoder_start_token_id", "eos_token_id"):
            self.check(name, int, 0, self.target_vocab_size - 1)
        # Flags, the table of positions, and the tied output layer.
        for item in fields(self):
            if item.type == "bool" and not isinstance(getattr(self, item.name), bool):
                raise CheckpointError(f"config: {item.name} must be true or false")
        self.check_sinusoids()
        if not self.tie_word_embeddings:
            raise CheckpointError(
                "config: tie_word_embeddings is false",
                "The output layer is always the table of the target's vocabulary.",
            )

    @override
    @classmethod
    def layer_entries(cls) -> tuple[str, ...]:
        return ("encoder_layers", "decoder_layers")

    @property
    @override
    def target_vocab_size(self) -> int:
        return self.decoder_vocab_size or self.vocab_size

    @override
    def size(self, name: str) -> int:
        if name == "num_hidden_layers":  # of both stacks
            return self.encoder_layers + self.decoder_layers
        return super().size(name)

    @override
    def to_dict(self) -> dict[str, Any]:
        # Only with LayerNorm after each sum is it a model that transformers has.
        kind = {"model_type": "transformer"} if self.normalize_before else {}
        return {**super().to_dict(), **kind, "is_encoder_decoder": True}


class TransformerEmbeddings(PairEmbeddings):
    """Token x sqrt(hidden) + sinusoid, then dropout (sections 3.4 and 3.5).

    `targets` is None where source and target share one table.
    """

    sinusoids: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.d_model
        self.tokens = Embedding(config.vocab_size, size)
        shared = config.share_encoder_decoder_embeddings
        self.targets = None if shared else Embedding(config.target_vocab_size, size)
        self.scale = math.sqrt(size) if config.scale_embedding else 1.0
        table = sinusoidal_positions(config.max_position_embeddings, size, interleaved=False)
        self.register_buffer("sinusoids", table, persistent=False)
        self.dropout = Dropout(config.dropout)

    @property
    def output(self) -> Tensor:
        """The table of the target's vocabulary and output layer, `[vocab, hidden]`."""
        return (self.tokens if self.targets is None else self.targets).weight

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        return self._placed(self.tokens, batch, batch.max_seqlen)

    @override
    def of_targets(self, batch: PackedBatch, longest: int) -> Tensor:
        return self._placed(self.targets or self.tokens, batch, longest)

    def _placed(self, table: Embedding, batch: PackedBatch, longest: int) -> Tensor:
        if longest > len(self.sinusoids):  # sinusoids continue without end
            more = sinusoidal_positions(2 * longest, self.sinusoids.shape[1], interleaved=False)
            self.sinusoids = more.to(self.sinusoids)
        x = table(batch.tokens) * self.scale + self.sinusoids[batch.positions]
        embedded: Tensor = self.dropout(x)
        return embedded


class TransformerModel(EncoderDecoder):
    """Pairs in, the decoder's last hidden states out."""

    config_class = TransformerConfig
    config: TransformerConfig
    embeddings: TransformerEmbeddings

    def __init__(self, config: TransformerConfig) -> None:
        kind = PreNormLayer if config.normalize_before else PostNormLayer
        common: dict[str, Any] = {
            "dropout": config.dropout,
            "attention_dropout": config.attention_dropout,
            "eps": LAYER_NORM_EPS,
        }
        # The encoder: self-attention to the whole source.
        heads, inner = config.encoder_attention_heads, config.encoder_ffn_dim
        encoder = [
            kind(config.d_model, heads, inner, config.activation_function, **common)
            for _ in range(config.encoder_layers)
        ]
        # The decoder: causal self-attention, then attention to the source.
        heads, inner = config.decoder_attention_heads, config.decoder_ffn_dim
        common |= {"causal": True, "cross": True}
        decoder = [
            kind(config.d_model, heads, inner, config.activation_function, **common)
            for _ in range(config.decoder_layers)
        ]
        # With LayerNorm first, the output of a stack would otherwise never be normalised.
        norms = [
            nn.LayerNorm(config.d_model, eps=LAYER_NORM_EPS) if config.normalize_before else None
            for _ in range(2)
        ]
        super().__init__(config, TransformerEmbeddings(config), encoder, decoder, norms)
        self.init_weights()

    @override
    def init_weights(self, module: nn.Module | None = None) -> None:
        """Draw fresh weights.

        Matrices are uniform with variance 2 / (in + out) (Glorot & Bengio 2010, equation 16); a row
        of an embedding has a length of about 1. The rest is as in `Backbone`.
        """
        super().init_weights(module)
        for part in (module or self).modules():
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                continue
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=self.config.d_model**-0.5)
            elif isinstance(part, SelfAttention | CrossAttention):
                # Query, key and value are stored as one matrix, but each is drawn as its own.
                for matrix in part.parameters():
                    for block in torch.split(matrix, matrix.shape[-1]):
                        _glorot(block)
            elif isinstance(part, FeedForward):
                for matrix in part.parameters():
                    _glorot(matrix)

    @override
    def grow_vocabulary(self, added: int) -> None:
        size = self.config.target_vocab_size + added
        super().grow_vocabulary(added)
        if self.embeddings.targets is not None:
            self.embeddings.targets = self.embeddings.targets.grown(added)
            self.config = replace(self.config, decoder_vocab_size=size)


def _glorot(parameter: Tensor) -> None:
    if parameter.ndim == 2 and not parameter.is_meta:
        nn.init.xavier_uniform_(parameter)


class Translator(SourceReader):
    """The next token of each target, as transformers' `MarianMTModel`."""

    backbone: TransformerModel

    def __init__(self, backbone: TransformerModel) -> None:
        super().__init__()
        self.backbone = backbone
        # Published models have a bias, which transformers does not train. Ours is zero.
        bias = torch.zeros(1, backbone.config.target_vocab_size)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @override
    def output_table(self) -> Tensor:
        return self.backbone.embeddings.output

    @override
    def output_bias(self) -> Tensor:
        return self.bias[0]

    @override
    def grow_output(self, added: int) -> None:
        bias = self.bias.detach()
        more = bias.mean().expand(1, added)
        self.bias = nn.Parameter(torch.cat([bias, more], 1), requires_grad=False)


def _stack_rules(name: str, stack: int) -> tuple[Rule, ...]:
    """The names that the layers of Marian's encoder and decoder have in common."""
    layer = f"{name}.layers.{{i}}"
    attention = tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv")
    return rules(
        ("layers.{i}.attention.qkv", attention),
        ("layers.{i}.attention.output", f"{layer}.self_attn.out_proj"),
        ("layers.{i}.attention_norm", f"{layer}.self_attn_layer_norm"),
        ("layers.{i}.feed_forward.up", f"{layer}.fc1"),
        ("layers.{i}.feed_forward.down", f"{layer}.fc2"),
        ("layers.{i}.feed_forward_norm", f"{layer}.final_layer_norm"),
        stack=stack,
    )


_SHARED_TABLE = Rule("embeddings.tokens.weight", ("shared.weight",))
_SOURCE_TABLE = Rule("embeddings.tokens.weight", ("encoder.embed_tokens.weight",))
_RULES = (
    *rules(
        ("embeddings.targets.weight", "decoder.embed_tokens.weight"),
        ("source_norm", "encoder.layer_norm"),
        ("final_norm", "decoder.layer_norm"),
    ),
    *_stack_rules("encoder", 0),
    *_stack_rules("decoder", 1),
    *rules(
        ("layers.{i}.cross.query", "decoder.layers.{i}.encoder_attn.q_proj"),
        (
            "layers.{i}.cross.kv",
            ("decoder.layers.{i}.encoder_attn.k_proj", "decoder.layers.{i}.encoder_attn.v_proj"),
        ),
        ("layers.{i}.cross.output", "decoder.layers.{i}.encoder_attn.out_proj"),
        ("layers.{i}.cross_norm", "decoder.layers.{i}.encoder_attn_layer_norm"),
        stack=1,
    ),
)


def _family(model_type: str, config: Mapping[str, Any]) -> Family:
    """The family's layout for one table of embeddings, or for one each of source and target."""
    # Marian's own entry; where it is missing, there is one table.
    shared = config.get("share_encoder_decoder_embeddings") is not False
    # The output layer is the table of the targets.
    output = "embeddings.tokens.weight" if shared else "embeddings.targets.weight"
    return Family(
        model_type=model_type,
        prefix="model.",
        backbone=TransformerModel,
        # Where the encoder finds its embeddings is all that differs between the layouts.
        rules=(_SHARED_TABLE if shared else _SOURCE_TABLE, *_RULES),
        # The output layer is a second name of a table, and has a bias of its own.
        heads={
            "backbone": HeadLayout("MarianModel"),
            "translation": HeadLayout(
                "MarianMTModel",
                lambda backbone, labels: Translator(backbone),
                rules(("bias", "final_logits_bias")),
                {"lm_head.weight": output},
            ),
        },
        # Copies of the shared table, and sinusoids, which are computed.
        ignored=tuple(
            f"{stack}.{name}.weight"
            for stack in ("encoder", "decoder")
            for name in ("embed_tokens", "embed_positions")
        ),
        # transformers knows Marian, with LayerNorm last, and not our variant.
        published=model_type == "marian",
        # Vaswani et al. 2017, table 3; "small" is ours.
        presets={
            f"transformer-{name}": {
                "encoder_layers": layers,
                "decoder_layers": layers,
                "d_model": hidden,
                "encoder_attention_heads": heads,
                "decoder_attention_heads": heads,
                "encoder_ffn_dim": 4 * hidden,
                "decoder_ffn_dim": 4 * hidden,
                "activation_function": "relu",
                "scale_embedding": True,
            }
            for name, layers, hidden, heads in (
                ("small", 3, 256, 4),
                ("base", 6, 512, 8),
                ("big", 6, 1024, 16),
            )
        },
        # The layout of a checkpoint is known when its config is.
        variant=lambda config: _family(model_type, config),
    )


FAMILY = _family("marian", {})
#: With LayerNorm first, which transformers' Marian does not have.
PRE_NORM = _family("transformer", {})
