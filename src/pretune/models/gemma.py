"""Gemma 3, the models for text alone (Gemma Team 2025): a Llama with a norm around each block.

Most layers see a window only, and turn queries and keys by faster angles than the global ones
between them. Norms add 1 to their weight, and embeddings are scaled by sqrt(hidden).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import ModelConfig, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.pooled import LastTokenClassifier
from pretune.models.layers import (
    Embedding,
    GatedFeedForward,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
)
from pretune.models.llama import FULL, SLIDING, language_heads
from pretune.models.rope import Rope, read_rope_parameters

#: The usual `rope_theta` of each kind of layer.
_THETAS = {FULL: 1_000_000.0, SLIDING: 10_000.0}


@dataclass(frozen=True)
class Gemma3Config(ModelConfig):
    """The sizes of a Gemma 3, under the names of `config.json`; the defaults are transformers'."""

    model_type: ClassVar[str] = "gemma3_text"
    dropout_names: ClassVar[tuple[str, ...]] = ()
    attention_dropout_name: ClassVar[str] = "attention_dropout"
    activation_name: ClassVar[str] = "hidden_activation"
    eps_name: ClassVar[str] = "rms_norm_eps"

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    query_pre_attn_scalar: float = 256
    sliding_window: int = 4096
    sliding_window_pattern: int = 6
    layer_types: Sequence[str] | None = None
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 2
    eos_token_id: int | Sequence[int] | None = 1
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        self.check_common()
        self.check("num_key_value_heads", int, 1, self.num_attention_heads)
        self.check("head_dim", int, 2, 65_536)
        self.check("sliding_window", int, 1, 10**9)
        self.check("sliding_window_pattern", int, 1, 1_000)
        self.check("query_pre_attn_scalar", float, 1, 10**6)
        self.check_flags("attention_bias", "use_bidirectional_attention", "tie_word_embeddings")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"config: num_attention_heads {self.num_attention_heads} is not divisible by "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        # What the released models for text do not have.
        for name in ("final_logit_softcapping", "attn_logit_softcapping"):
            if getattr(self, name) is not None:
                raise CheckpointError(
                    f"config: {name} is {brief(repr(getattr(self, name)))}",
                    "Only Gemma 3 as published for text is supported: null.",
                )
        if self.use_bidirectional_attention:
            raise CheckpointError(
                "config: use_bidirectional_attention is true",
                "Only Gemma 3 as published for text is supported: false.",
            )
        self._settle()

    def _settle(self) -> None:
        """Fill in the kinds of layers and their positions, where the file does not say them."""
        pattern, kinds = self.sliding_window_pattern, self.layer_types
        if kinds is None:
            count = range(1, self.num_hidden_layers + 1)
            kinds = [SLIDING if number % pattern else FULL for number in count]
            object.__setattr__(self, "layer_types", kinds)
        known = isinstance(kinds, list | tuple) and {*kinds} <= {FULL, SLIDING}
        if not known or len(kinds) != self.num_hidden_layers:
            raise CheckpointError(
                f"config: layer_types must be a list of {self.num_hidden_layers} layers, each "
                f"{FULL} or {SLIDING}, not {brief(repr(kinds))}"
            )
        given = {} if self.rope_parameters is None else self.rope_parameters
        if not isinstance(given, Mapping) or not {*given} <= {FULL, SLIDING}:
            raise CheckpointError(
                f"config: rope_parameters must have an object for {FULL} and {SLIDING}, "
                f"not {brief(repr(given))}"
            )
        whole = {
            kind: read_rope_parameters({"rope_parameters": given.get(kind)}, theta)
            for kind, theta in _THETAS.items()
        }
        object.__setattr__(self, "rope_parameters", whole)
        self.ropes()  # unknown kinds of positions are refused here

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        # Older files have the global layers' angles apart from those of the others.
        given, scaling = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
        older = {FULL: values.get("rope_theta"), SLIDING: values.get("rope_local_base_freq")}
        if isinstance(given, Mapping) and isinstance(scaling, Mapping):
            more = {FULL: scaling, SLIDING: {}}
            both = {
                kind: {"rope_theta": older[kind], **(given.get(kind) or {}), **more[kind]}
                for kind in _THETAS
            }
            values = {**values, "rope_parameters": {**given, **both}}
        return super().from_dict(values)

    @override
    def to_dict(self) -> dict[str, Any]:
        # Under the names that were used before `rope_parameters`, too: older tools read only them.
        entries = super().to_dict()
        rope = entries["rope_parameters"]
        entries["rope_theta"] = rope[FULL]["rope_theta"]
        entries["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
        if rope[FULL]["rope_type"] != "default":
            entries["rope_scaling"] = dict(rope[FULL])
        return entries

    @override
    def with_layers(self, kept: Sequence[int], **entries: Any) -> Self:
        kinds = [list(self.layer_types or ())[layer] for layer in kept]
        return super().with_layers(kept, layer_types=kinds, **entries)

    @property
    @override
    def hidden_dropout(self) -> float:
        return 0.0

    def ropes(self) -> dict[str, Rope]:
        """Make the rotary positions of each kind of layer."""
        assert self.rope_parameters is not None  # noqa: S101 - set above
        sizes = self.head_dim, self.max_position_embeddings
        return {kind: Rope.of(entry, *sizes) for kind, entry in self.rope_parameters.items()}


class Gemma3Embeddings(Embeddings):
    """Token x sqrt(hidden)."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.hidden_size)
        self.scale = math.sqrt(config.hidden_size)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded: Tensor = self.tokens(batch.tokens) * self.scale
        return embedded


class Gemma3Layer(PreNormLayer):
    """A norm before each block and one after it: x = x + Norm(Block(Norm(x)))."""

    def __init__(self, config: Gemma3Config, kind: str, rope: Rope) -> None:
        size, bias = config.hidden_size, config.attention_bias
        norm = partial(RMSNorm, eps=config.rms_norm_eps, offset=1.0)
        super().__init__(
            size,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_activation,
            dropout=0.0,
            attention_dropout=config.attention_dropout,
            eps=config.rms_norm_eps,
            causal=True,
            attention=SelfAttention(
                size,
                config.num_attention_heads,
                config.attention_dropout,
                num_kv_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                qkv_bias=bias,
                output_bias=bias,
                scale=config.query_pre_attn_scalar**-0.5,
                window=config.sliding_window if kind == SLIDING else None,
                rope=rope,
                query_norm=norm(config.head_dim),
                key_norm=norm(config.head_dim),
            ),
            feed_forward=GatedFeedForward(size, config.intermediate_size, config.hidden_activation),
            norm=norm,
        )
        self.attention_output_norm = norm(size)
        self.feed_forward_output_norm = norm(size)


class Gemma3Model(Backbone):
    """The decoder: packed batch in, hidden states out; the last one after the final norm."""

    config_class = Gemma3Config
    config: Gemma3Config
    causal = True

    def __init__(self, config: Gemma3Config) -> None:
        ropes = config.ropes()
        layers = [Gemma3Layer(config, kind, ropes[kind]) for kind in config.layer_types or ()]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps, offset=1.0)
        super().__init__(config, Gemma3Embeddings(config), layers, norm)
        self.init_weights()


_LAYER, _ATTENTION = "layers.{i}", "layers.{i}.self_attn"


def _family(*, tied: bool = True) -> Family:
    """The family, for models whose output layer is a matrix of its own or the table of tokens."""
    return Family(
        model_type="gemma3_text",
        prefix="model.",
        backbone=Gemma3Model,
        rules=rules(
            ("embeddings.tokens.weight", "embed_tokens.weight"),
            ("layers.{i}.attention_norm.weight", f"{_LAYER}.input_layernorm.weight"),
            ("layers.{i}.attention.qkv", tuple(f"{_ATTENTION}.{part}_proj" for part in "qkv")),
            ("layers.{i}.attention.query_norm.weight", f"{_ATTENTION}.q_norm.weight"),
            ("layers.{i}.attention.key_norm.weight", f"{_ATTENTION}.k_norm.weight"),
            ("layers.{i}.attention.output", f"{_ATTENTION}.o_proj"),
            (
                "layers.{i}.attention_output_norm.weight",
                f"{_LAYER}.post_attention_layernorm.weight",
            ),
            (
                "layers.{i}.feed_forward_norm.weight",
                f"{_LAYER}.pre_feedforward_layernorm.weight",
            ),
            (
                "layers.{i}.feed_forward.gate_up",
                (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj"),
            ),
            ("layers.{i}.feed_forward.down", f"{_LAYER}.mlp.down_proj"),
            (
                "layers.{i}.feed_forward_output_norm.weight",
                f"{_LAYER}.post_feedforward_layernorm.weight",
            ),
            ("final_norm.weight", "norm.weight"),
        ),
        heads={
            "backbone": HeadLayout("Gemma3TextModel"),
            "sequence_classification": HeadLayout(
                "Gemma3TextForSequenceClassification",
                LastTokenClassifier,
                rules(("classifier.weight", "score.weight")),
            ),
            **language_heads("Gemma3ForCausalLM", tied),
        },
        other_heads=("lm_head", "score", "v_head"),
        presets={
            f"gemma-3-{name}": {
                "vocab_size": 262144,
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "intermediate_size": inner,
                "max_position_embeddings": 32768,
                "sliding_window": 512,
            }
            for name, layers, hidden, inner in (("270m", 18, 640, 2048), ("1b", 26, 1152, 6912))
        },
        # Which of the two a checkpoint has is known when its config is.
        variant=lambda config: _family(tied=config.get("tie_word_embeddings") is not False),
    )


FAMILY = _family()
