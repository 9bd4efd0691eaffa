"""GPT-2 (Radford et al. 2019): a pre-norm decoder; each token sees only the tokens before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import ModelConfig, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import ActorCritic, CausalLM
from pretune.models.heads.pooled import LastTokenClassifier
from pretune.models.layers import Dropout, Embedding, PreNormLayer, SelfAttention


@dataclass(frozen=True)
class Gpt2Config(ModelConfig):
    """The sizes of a GPT-2, under the names of `config.json`; the defaults are GPT-2 small's.

    Attributes:
        scale_attn_weights: whether products of queries and keys are divided by sqrt(D).
        scale_attn_by_inverse_layer_idx: whether layer i, from 0, divides them by i + 1 as well
            (Mistral of Stanford CRFM).
        reorder_and_upcast_attn: whether they are computed in float32 also where the rest is not,
            as they always are here; kept for `config.json`.
    """

    model_type: ClassVar[str] = "gpt2"
    names: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
    aliases: ClassVar[dict[str, str]] = names
    dropout_names: ClassVar[tuple[str, ...]] = ("resid_pdrop", "embd_pdrop")
    attention_dropout_name: ClassVar[str] = "attn_pdrop"
    activation_name: ClassVar[str] = "activation_function"
    eps_name: ClassVar[str] = "layer_norm_epsilon"

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    add_cross_attention: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        self.check_common()
        if self.n_inner is not None:
            self.check("n_inner", int, 1, 1_000_000)
        self.check_flags(
            *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
        )
        if self.add_cross_attention:
            raise CheckpointError(
                f"config: add_cross_attention is {brief(repr(self.add_cross_attention))}: the "
                "decoder of a pair of models",
                "Only GPT-2 as published is supported: add_cross_attention False.",
            )

    def attention_scale(self, layer: int) -> float | None:
        """The factor on the products of queries and keys in a layer; None: the usual one."""
        if self.scale_attn_weights and not self.scale_attn_by_inverse_layer_idx:
            return None
        scale = (self.n_embd // self.n_head) ** -0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @property
    def inner(self) -> int:
        """The width between the two linear maps of a feed-forward block."""
        return self.n_inner or 4 * self.n_embd

    @override
    def size(self, name: str) -> int:
        return self.inner if name == "intermediate_size" else super().size(name)

    @override
    def to_dict(self) -> dict[str, Any]:
        # What nearly no file has is not written.
        entries = super().to_dict()
        if not self.reorder_and_upcast_attn:
            del entries["reorder_and_upcast_attn"]
        return entries

    @override
    def resized(self, **entries: Any) -> Self:
        if "intermediate_size" in entries:  # no name of `names`: it may be missing there
            entries["n_inner"] = entries.pop("intermediate_size")
        return super().resized(**entries)

    @override
    def with_layers(self, kept: Sequence[int], **entries: Any) -> Self:
        if self.scale_attn_by_inverse_layer_idx and [*kept] != [*range(len(kept))]:
            raise CheckpointError(
                "the scores of each layer are divided by its number "
                "(scale_attn_by_inverse_layer_idx), which would change",
                f"Keep the first layers: 0 to {len(kept) - 1}.",
            )
        return super().with_layers(kept, **entries)


class Gpt2Embeddings(Embeddings):
    """Token + position, then dropout."""

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.n_embd)
        self.positions = Embedding(config.n_positions, config.n_embd)
        self.dropout = Dropout(config.embd_pdrop)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.tokens(batch.tokens) + self.positions(batch.positions)
        embedded: Tensor = self.dropout(x)
        return embedded


class Gpt2Model(Backbone):
    """The decoder: packed batch in, hidden states out; the last one after the final LayerNorm."""

    config_class = Gpt2Config
    config: Gpt2Config
    causal = True

    def __init__(self, config: Gpt2Config) -> None:
        layers = [
            PreNormLayer(
                config.n_embd,
                config.n_head,
                config.inner,
                config.activation_function,
                dropout=config.resid_pdrop,
                attention_dropout=config.attn_pdrop,
                eps=config.layer_norm_epsilon,
                causal=True,
                attention=SelfAttention(
                    config.n_embd,
                    config.n_head,
                    config.attn_pdrop,
                    scale=config.attention_scale(number),
                ),
            )
            for number in range(config.n_layer)
        ]
        norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        super().__init__(config, Gpt2Embeddings(config), layers, norm)
        self.init_weights()

    @override
    def init_weights(self, module: nn.Module | None = None) -> None:
        super().init_weights(module)
        # What is added to the residual stream starts smaller, by 1 / sqrt(2 L) (section 2.3).
        std = self.config.initializer_range / math.sqrt(2 * self.config.n_layer)
        for layer in self.layers:
            for name in ("attention.output", "feed_forward.down"):
                part = layer.get_submodule(name)
                weight = part.get_parameter("weight")
                if not weight.is_meta and module in (None, part):
                    nn.init.normal_(weight, std=std)


FAMILY = Family(
    model_type="gpt2",
    prefix="transformer.",
    backbone=Gpt2Model,
    rules=(
        *rules(
            ("embeddings.tokens.weight", "wte.weight"),
            ("embeddings.positions.weight", "wpe.weight"),
            ("layers.{i}.attention_norm", "h.{i}.ln_1"),
            ("layers.{i}.feed_forward_norm", "h.{i}.ln_2"),
            ("final_norm", "ln_f"),
        ),
        *rules(
            ("layers.{i}.attention.qkv", "h.{i}.attn.c_attn"),
            ("layers.{i}.attention.output", "h.{i}.attn.c_proj"),
            ("layers.{i}.feed_forward.up", "h.{i}.mlp.c_fc"),
            ("layers.{i}.feed_forward.down", "h.{i}.mlp.c_proj"),
            transposed=True,
        ),
    ),
    heads={
        "backbone": HeadLayout("GPT2Model"),
        "sequence_classification": HeadLayout(
            "GPT2ForSequenceClassification",
            LastTokenClassifier,
            rules(("classifier.weight", "score.weight")),
        ),
        # Stored as TRL stores it: transformers reads the language model, and the value is extra.
        "actor_critic": HeadLayout(
            "GPT2LMHeadModel",
            lambda backbone, labels: ActorCritic(backbone),
            rules(("value", "v_head.summary")),
            tied={"lm_head.weight": "embeddings.tokens.weight"},
            keeps_output=True,
        ),
        "causal_lm": HeadLayout(
            "GPT2LMHeadModel",
            lambda backbone, labels: CausalLM(backbone),
            tied={"lm_head.weight": "embeddings.tokens.weight"},
        ),
    },
    # The causal mask, which older files carry along.
    ignored=("h.{i}.attn.bias", "h.{i}.attn.masked_bias"),
    # Of GPT2DoubleHeadsModel, of token classification and of question answering.
    other_heads=("multiple_choice_head", "classifier", "qa_outputs"),
    presets={
        f"gpt2-{name}": {"n_layer": layers, "n_embd": hidden, "n_head": hidden // 64}
        for name, layers, hidden in (
            ("small", 12, 768),
            ("medium", 24, 1024),
            ("large", 36, 1280),
            ("xl", 48, 1600),
        )
    },
)
