"""Llama (Touvron et al. 2023) and the decoders that are laid out like it: Mistral, Qwen2, Qwen3.

A pre-norm decoder with RMSNorm, rotary positions, heads of queries that share keys and values, and
a gate in the feed-forward block; nothing has a bias. SmolLM2 and TinyLlama are Llamas by name. The
others differ in little: Mistral's tokens see a window only; Qwen2 has a bias on queries, keys and
values; Qwen3 norms queries and keys instead, and its heads have a width of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Self

from typing_extensions import override

from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, TokenEmbeddings
from pretune.models.config import ModelConfig, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import ActorCritic, CausalLM
from pretune.models.heads.pooled import LastTokenClassifier
from pretune.models.heads.token import token_heads
from pretune.models.layers import (
    GatedFeedForward,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
)
from pretune.models.rope import Rope, read_rope_parameters, refuse_partial_rope

#: The kinds of layers in `layer_types`: those that see all tokens before, and those with a window.
FULL, SLIDING = "full_attention", "sliding_attention"
#: The entries that say which linear maps have a bias.
BIASES = ("attention_bias", "mlp_bias")


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """The sizes of a Llama, under the names of `config.json`; the defaults are transformers'.

    Class attributes:
        qkv_bias: whether queries, keys and values always have a bias.
        head_norms: whether each head's queries and keys are normed.
        biases: the entries of `BIASES` that the family's class in transformers reads.
    """

    model_type: ClassVar[str] = "llama"
    dropout_names: ClassVar[tuple[str, ...]] = ()
    attention_dropout_name: ClassVar[str] = "attention_dropout"
    activation_name: ClassVar[str] = "hidden_act"
    eps_name: ClassVar[str] = "rms_norm_eps"
    qkv_bias: ClassVar[bool] = False
    head_norms: ClassVar[bool] = False
    biases: ClassVar[tuple[str, ...]] = BIASES

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | Sequence[int] | None = 2
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        self.check_common()
        # What follows from other sizes where the file does not say it.
        usual = {
            "num_key_value_heads": self.num_attention_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
        }
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        whole = read_rope_parameters({"rope_parameters": self.rope_parameters}, 10_000.0)
        object.__setattr__(self, "rope_parameters", whole)
        self.check("num_key_value_heads", int, 1, self.num_attention_heads)
        self.check("head_dim", int, 2, 65_536)
        if self.num_attention_heads % self.shared_heads:
            raise CheckpointError(
                f"config: num_attention_heads {self.num_attention_heads} is not divisible by "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        for item in fields(self):
            if item.type == "bool" and not isinstance(getattr(self, item.name), bool):
                raise CheckpointError(f"config: {item.name} must be true or false")
        self.check_windows()
        self.rope()  # unknown kinds of positions are refused here

    def check_windows(self) -> None:
        """Check the entries about windows, where a family has some."""

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        parameters = read_rope_parameters(values, 10_000.0)
        refuse_partial_rope(parameters, cls.model_type)
        # Where a family has no windows, transformers' caches have them all the same.
        kinds, named = values.get("layer_types"), {item.name for item in fields(cls)}
        plain = not kinds or (isinstance(kinds, list) and all(kind == FULL for kind in kinds))
        if not plain and "sliding_window" not in named:
            raise CheckpointError(
                f"config: layer_types is {brief(repr(kinds))}",
                f"All layers of a {cls.model_type} are {FULL}.",
            )
        # Entries of another family's files change nothing.
        unread = {name for name in BIASES if name not in cls.biases}
        own = {name: value for name, value in values.items() if name not in unread}
        return super().from_dict({**own, "rope_parameters": parameters})

    @override
    def to_dict(self) -> dict[str, Any]:
        # Under the names that were used before `rope_parameters`, too: older tools read only them.
        entries = super().to_dict()
        rope = dict(entries["rope_parameters"])
        entries["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            entries["rope_scaling"] = rope
        return entries

    @property
    @override
    def hidden_dropout(self) -> float:
        return 0.1  # of heads alone, as in transformers

    @property
    def shared_heads(self) -> int:
        """The number of heads of keys and values."""
        return self.size("num_key_value_heads")

    def window(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included; None: all before it."""
        return None

    def rope(self) -> Rope:
        """Make the rotary positions."""
        assert self.rope_parameters is not None  # noqa: S101 - set above
        sizes = self.size("head_dim"), self.max_position_embeddings
        return Rope.of(self.rope_parameters, *sizes)

    def layers(self) -> list[PreNormLayer]:
        """Make the layers, with fresh weights."""
        size, act, rope = self.hidden_size, self.hidden_act, self.rope()
        norm = partial(RMSNorm, eps=self.rms_norm_eps)
        width = self.size("head_dim")

        def attention(layer: int) -> SelfAttention:
            return SelfAttention(
                size,
                self.num_attention_heads,
                self.attention_dropout,
                num_kv_heads=self.shared_heads,
                head_dim=width,
                qkv_bias=self.qkv_bias or self.attention_bias,
                output_bias=self.attention_bias,
                window=self.window(layer),
                rope=rope,
                query_norm=norm(width) if self.head_norms else None,
                key_norm=norm(width) if self.head_norms else None,
            )

        return [
            PreNormLayer(
                size,
                self.num_attention_heads,
                self.intermediate_size,
                act,
                dropout=0.0,
                attention_dropout=self.attention_dropout,
                eps=self.rms_norm_eps,
                causal=True,
                attention=attention(layer),
                feed_forward=GatedFeedForward(
                    size, self.intermediate_size, act, bias=self.mlp_bias
                ),
                norm=norm,
            )
            for layer in range(self.num_hidden_layers)
        ]


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """The sizes of a Mistral; all its layers have a window, unless `sliding_window` is null."""

    model_type: ClassVar[str] = "mistral"
    biases: ClassVar[tuple[str, ...]] = ()

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    sliding_window: int | None = 4096

    @override
    def check_windows(self) -> None:
        if self.sliding_window is not None:
            self.check("sliding_window", int, 1, 10**9)

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        config = super().from_dict(values)
        if values.get("sliding_window", 0) is None:
            object.__setattr__(config, "sliding_window", None)
        return config

    @override
    def window(self, layer: int) -> int | None:
        return self.sliding_window


@dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """The sizes of a Qwen2; with `use_sliding_window` the later layers have a window."""

    model_type: ClassVar[str] = "qwen2"
    qkv_bias: ClassVar[bool] = True
    biases: ClassVar[tuple[str, ...]] = ()

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: Sequence[str] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None

    @override
    def check_windows(self) -> None:
        self.check("max_window_layers", int, 0, 10**9)
        if self.sliding_window is not None:
            self.check("sliding_window", int, 1, 10**9)
        windows = self.use_sliding_window and self.sliding_window is not None
        if self.layer_types is None:
            usual = [
                SLIDING if windows and layer >= self.max_window_layers else FULL
                for layer in range(self.num_hidden_layers)
            ]
            object.__setattr__(self, "layer_types", usual)
        types = self.layer_types
        known = isinstance(types, list | tuple) and {*types} <= {FULL, SLIDING}
        if not known or len(types or ()) != self.num_hidden_layers:
            raise CheckpointError(
                f"config: layer_types must be a list of {self.num_hidden_layers} layers, each "
                f"{FULL} or {SLIDING}, not {brief(repr(types))}"
            )
        if SLIDING in (types or ()) and not windows:
            raise CheckpointError(
                f"config: layer_types has {SLIDING}, but use_sliding_window and sliding_window "
                "give no window"
            )

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        # An entry without a window says the same as none.
        if values.get("sliding_window", 0) is None:
            values = {**values, "use_sliding_window": False}
        return super().from_dict(values)

    @override
    def with_layers(self, kept: Sequence[int], **entries: Any) -> Self:
        kinds = [list(self.layer_types or ())[layer] for layer in kept]
        return super().with_layers(kept, layer_types=kinds, **entries)

    @override
    def window(self, layer: int) -> int | None:
        assert self.layer_types is not None  # noqa: S101 - set above
        return self.sliding_window if self.layer_types[layer] == SLIDING else None


@dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """The sizes of a Qwen3."""

    model_type: ClassVar[str] = "qwen3"
    qkv_bias: ClassVar[bool] = False
    head_norms: ClassVar[bool] = True
    biases: ClassVar[tuple[str, ...]] = ("attention_bias",)

    head_dim: int | None = 128


class LlamaModel(Backbone):
    """The decoder: packed batch in, hidden states out; the last one after the final norm."""

    config_class = LlamaConfig
    config: LlamaConfig
    causal = True

    def __init__(self, config: LlamaConfig) -> None:
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, TokenEmbeddings(config), config.layers(), norm)
        self.init_weights()


class MistralModel(LlamaModel):
    """A Llama with windows."""

    config_class = MistralConfig


class Qwen2Model(LlamaModel):
    """A Llama with a bias on queries, keys and values."""

    config_class = Qwen2Config


class Qwen3Model(LlamaModel):
    """A Llama with norms on queries and keys."""

    config_class = Qwen3Config


_LAYER, _ATTENTION = "layers.{i}", "layers.{i}.self_attn"
_RULES = rules(
    ("embeddings.tokens.weight", "embed_tokens.weight"),
    ("layers.{i}.attention_norm.weight", f"{_LAYER}.input_layernorm.weight"),
    ("layers.{i}.attention.qkv", tuple(f"{_ATTENTION}.{part}_proj" for part in "qkv")),
    ("layers.{i}.attention.query_norm.weight", f"{_ATTENTION}.q_norm.weight"),
    ("layers.{i}.attention.key_norm.weight", f"{_ATTENTION}.k_norm.weight"),
    ("layers.{i}.attention.output", f"{_ATTENTION}.o_proj"),
    ("layers.{i}.feed_forward_norm.weight", f"{_LAYER}.post_attention_layernorm.weight"),
    ("layers.{i}.feed_forward.gate_up", (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj")),
    ("layers.{i}.feed_forward.down", f"{_LAYER}.mlp.down_proj"),
    ("final_norm.weight", "norm.weight"),
)


def _language_head(architecture: str, kind: type[CausalLM], tied: bool, **more: Any) -> HeadLayout:
    """A head for the next token, whose output layer is the table of tokens or a matrix."""
    output = () if tied else rules(("lm_head.weight", "lm_head.weight"))
    return HeadLayout(
        architecture,
        lambda backbone, labels: kind(backbone, tied=backbone.config.tie_word_embeddings),
        (*output, *more.pop("rules", ())),
        tied={"lm_head.weight": "embeddings.tokens.weight"} if tied else {},
        output=None if tied else "lm_head.weight",
        **more,
    )


def language_heads(architecture: str, tied: bool) -> dict[str, HeadLayout]:
    """The heads that write, of a decoder whose `config` says `tie_word_embeddings`.

    Args:
        architecture: the class that transformers has for both.
        tied: whether the output layer is the table of tokens.
    """
    value = rules(("value", "v_head.summary"))
    return {
        # Stored as TRL stores it: transformers reads the language model, and the value is extra.
        "actor_critic": _language_head(
            architecture, ActorCritic, tied, rules=value, keeps_output=True
        ),
        "causal_lm": _language_head(architecture, CausalLM, tied),
    }


def _heads(name: str, tied: bool, answer_prefix: str | None) -> dict[str, HeadLayout]:
    """The heads of a family whose classes in transformers begin with this name."""
    return {
        "backbone": HeadLayout(f"{name}Model"),
        "sequence_classification": HeadLayout(
            f"{name}ForSequenceClassification",
            LastTokenClassifier,
            rules(("classifier.weight", "score.weight")),
        ),
        **token_heads(name, published="score", answer_prefix=answer_prefix, masked=False),
        **language_heads(f"{name}ForCausalLM", tied),
    }


def _family(
    backbone: type[LlamaModel],
    name: str,
    presets: Mapping[str, Mapping[str, Any]],
    *,
    answer_prefix: str | None = "transformer.",
    tied: bool = False,
) -> Family:
    """A family, for models whose output layer is a matrix of its own or the table of tokens."""
    again = partial(_family, backbone, name, presets, answer_prefix=answer_prefix)
    return Family(
        model_type=backbone.config_class.model_type,
        prefix="model.",
        backbone=backbone,
        rules=_RULES,
        heads=_heads(name, tied, answer_prefix),
        # The rates of the rotary positions, which older files carry along.
        ignored=("layers.{i}.self_attn.rotary_emb.inv_freq",),
        other_heads=("lm_head", "score", "qa_outputs", "v_head"),
        presets=presets,
        # Which of the two a checkpoint has is known when its config is.
        variant=lambda config: again(tied=config.get("tie_word_embeddings") is True),
    )


def _sizes(
    layers: int, hidden: int, heads: int, shared: int, inner: int, **more: Any
) -> dict[str, Any]:
    """The entries of `config.json` that every preset has."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "intermediate_size": inner,
        **more,
    }


def _theta(theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": scaling.pop("rope_type", "default"), "rope_theta": theta, **scaling}


#: SmolLM2 (Ben Allal et al. 2025).
_SMOLLM2 = {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": _theta(100_000.0),
    "bos_token_id": 0,
    "eos_token_id": 0,
}
#: Llama 3.2 (Grattafiori et al. 2024, and Meta's model cards).
_LLAMA3 = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": _theta(
        500_000.0,
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
_QWEN2 = {
    "tie_word_embeddings": True,
    "rope_parameters": _theta(1_000_000.0),
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
_QWEN3 = {**_QWEN2, "max_position_embeddings": 40960, "eos_token_id": 151645}

FAMILY = _family(
    LlamaModel,
    "Llama",
    {
        "smollm2-135m": _sizes(
            30, 576, 9, 3, 1536, **_SMOLLM2, initializer_range=0.041666666666666664
        ),
        "smollm2-360m": _sizes(32, 960, 15, 5, 2560, **_SMOLLM2),
        "smollm2-1.7b": _sizes(
            24, 2048, 32, 32, 8192, **{**_SMOLLM2, "rope_parameters": _theta(130_000.0)}
        ),
        "tinyllama-1.1b": _sizes(22, 2048, 32, 4, 5632, rms_norm_eps=1e-5),
        "llama-3.2-1b": _sizes(16, 2048, 32, 8, 8192, head_dim=64, **_LLAMA3),
        "llama-3.2-3b": _sizes(28, 3072, 24, 8, 8192, head_dim=128, **_LLAMA3),
    },
)
MISTRAL = _family(
    MistralModel,
    "Mistral",
    {
        "mistral-7b": _sizes(
            32, 4096, 32, 8, 14336, max_position_embeddings=32768, rms_norm_eps=1e-5
        )
    },
    answer_prefix=None,
)
QWEN2 = _family(
    Qwen2Model,
    "Qwen2",
    {
        "qwen2.5-0.5b": _sizes(24, 896, 14, 2, 4864, **_QWEN2),
        "qwen2.5-1.5b": _sizes(28, 1536, 12, 2, 8960, **_QWEN2),
    },
)
QWEN3 = _family(
    Qwen3Model,
    "Qwen3",
    {
        "qwen3-0.6b": _sizes(28, 1024, 16, 8, 3072, head_dim=128, **_QWEN3),
        "qwen3-1.7b": _sizes(28, 2048, 16, 8, 6144, head_dim=128, **_QWEN3),
    },
)
