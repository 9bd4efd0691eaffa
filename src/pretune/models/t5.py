"""T5 (Raffel et al. 2020) and mT5 (Xue et al. 2021): every task is a text that becomes another one.

An encoder-decoder without biases and without a scale on the attention scores. Tokens do not know
their positions; scores know distances: a table that all layers of a stack share has a number for
each head and each range of distances. RMSNorm comes first.

Of version 1.0 the output layer is the table of embeddings, times hidden**-0.5. Version 1.1, the
FLANs and mT5 have a matrix of their own, and gates in the feed-forward block. transformers 5 takes
the file's word for it, whatever `tie_word_embeddings` says: a file that has both tables, with other
values, has two. `scale_decoder_outputs` says whether the output is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone
from pretune.models.config import MAX_SIZES, ModelConfig, brief
from pretune.models.encoder_decoder import EncoderDecoder, PairEmbeddings, SourceReader
from pretune.models.family import Family, HeadLayout, Rule, rules
from pretune.models.heads.token import TokenClassifier
from pretune.models.layers import (
    ACTIVATIONS,
    CrossAttention,
    Dropout,
    Embedding,
    FeedForward,
    GatedFeedForward,
    Linear,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
)

#: Texts may have any length; this is believed where a limit is asked for.
_ENDLESS = MAX_SIZES["max_position_embeddings"]


@dataclass(frozen=True)
class T5Config(ModelConfig):
    """The sizes of a T5, under the names of `config.json`; the defaults are T5 small's."""

    model_type: ClassVar[str] = "t5"
    names: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "d_ff",
    }
    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "head_dim": "d_kv",
    }
    dropout_names: ClassVar[tuple[str, ...]] = ("dropout_rate",)
    attention_dropout_name: ClassVar[str] = "dropout_rate"
    activation_name: ClassVar[str] = "activation"
    eps_name: ClassVar[str] = "layer_norm_epsilon"
    endless: ClassVar[bool] = True

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None
    classifier_dropout: float = 0.0
    is_encoder_decoder: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self) -> None:
        if self.num_decoder_layers is None:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        self.check_sizes(("dropout_rate", "classifier_dropout"))
        self.check("num_decoder_layers", int, 1, MAX_SIZES["num_hidden_layers"])
        self.check("d_kv", int, 1, MAX_SIZES["hidden_size"])
        self.check("initializer_factor", float, 0, 1000)
        # Ranges of distances: half of them grow, for which there has to be room.
        self.check("relative_attention_num_buckets", int, 4, 65_536)
        least = self.relative_attention_num_buckets // 2 + 1
        self.check("relative_attention_max_distance", int, least, 1_000_000)
        for name in ("pad_token_id", "decoder_start_token_id", "eos_token_id"):
            self.check(name, int, 0, self.vocab_size - 1)
        for name in ("tie_word_embeddings", "is_encoder_decoder"):
            if not isinstance(getattr(self, name), bool):
                raise CheckpointError(f"config: {name} must be true or false")
        if self.scale_decoder_outputs not in (None, True, False):
            raise CheckpointError("config: scale_decoder_outputs must be true or false")
        self._check_block()
        self._check_removed_heads()

    def _check_block(self) -> None:
        """Check the form of the feed-forward block, e.g. `gated-gelu`."""
        kind = self.feed_forward_proj
        parts = kind.split("-") if isinstance(kind, str) else []
        if not parts or self.activation not in ACTIVATIONS or parts[:-1] not in ([], ["gated"]):
            raise CheckpointError(
                f"config: feed_forward_proj {brief(repr(kind))} is unknown here",
                f"Known: gated-NAME and NAME, of {', '.join(ACTIVATIONS)}.",
            )

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        config = super().from_dict(values)
        # transformers goes by this entry, which it derives from the other where it is missing.
        named = values.get("dense_act_fn")
        meant = ACTIVATIONS[config.activation]
        if named is not None and ACTIVATIONS.get(str(named)) is not meant:
            raise CheckpointError(
                f"config: dense_act_fn is {brief(repr(named))}, and feed_forward_proj "
                f"{config.feed_forward_proj}",
                "Let both name the same activation, or remove dense_act_fn.",
            )
        return config

    @property
    def activation(self) -> str:
        """The activation of the feed-forward block: `gated-gelu` means the tanh approximation."""
        name = str(self.feed_forward_proj)
        return "gelu_new" if name == "gated-gelu" else name.split("-")[-1]

    @property
    def gated(self) -> bool:
        """Whether the feed-forward block has a gate."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def output_scale(self) -> float:
        """What hidden states are multiplied by before the output layer."""
        scaled = self.scale_decoder_outputs
        scaled = self.tie_word_embeddings if scaled is None else scaled
        return float(self.d_model**-0.5) if scaled else 1.0

    @override
    def to_dict(self) -> dict[str, Any]:
        # transformers tells by this entry, and not by `tie_word_embeddings`.
        return {**super().to_dict(), "scale_decoder_outputs": self.output_scale != 1.0}

    @override
    def size(self, name: str) -> int:
        if name == "max_position_embeddings":
            return _ENDLESS
        if name == "num_hidden_layers":  # of both stacks
            return self.num_layers + (self.num_decoder_layers or 0)
        return super().size(name)

    @override
    @classmethod
    def layer_entries(cls) -> tuple[str, ...]:
        return ("num_layers", "num_decoder_layers")

    @override
    @classmethod
    def dropout_entries(
        cls, dropout: float | None, attention_dropout: float | None
    ) -> dict[str, float]:
        chosen = {value for value in (dropout, attention_dropout) if value is not None}
        if len(chosen) > 1:
            raise CheckpointError(
                "a T5 has one dropout for all: dropout and attention_dropout must not differ",
                "Set model.dropout alone.",
            )
        return {} if not chosen else {"dropout_rate": chosen.pop()}


@dataclass(frozen=True)
class MT5Config(T5Config):
    """The sizes of an mT5, whose output is never scaled."""

    model_type: ClassVar[str] = "mt5"

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"

    @property
    @override
    def output_scale(self) -> float:
        return 1.0


@dataclass(frozen=True)
class T5EncoderConfig(T5Config):
    """The sizes of the encoder alone."""

    is_encoder_decoder: bool = False

    @override
    def size(self, name: str) -> int:
        return self.num_layers if name == "num_hidden_layers" else super().size(name)

    @override
    @classmethod
    def layer_entries(cls) -> tuple[str, ...]:
        return ("num_layers",)


@dataclass(frozen=True)
class MT5EncoderConfig(T5EncoderConfig):
    """The sizes of the encoder of an mT5 alone."""

    model_type: ClassVar[str] = "mt5"

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"


class RelativePositions(nn.Module):
    """What is added to the scores of a stack: a number for each head and range of distances.

    Short distances have a range each, longer ones share ranges that grow with the logarithm, up to
    the longest one (Raffel et al. 2020, section 2.1).

    Args:
        config: the sizes.
        causal: whether keys only come before queries; else half of the ranges are for each side.
    """

    ranges: Tensor

    def __init__(self, config: T5Config, *, causal: bool) -> None:
        super().__init__()
        self.table = Embedding(config.relative_attention_num_buckets, config.num_heads)
        # The range of each distance from -longest to longest; beyond, it is that of the longest.
        # On the CPU whatever the default device, as no checkpoint holds it.
        self.longest = config.relative_attention_max_distance
        distances = torch.arange(-self.longest, self.longest + 1, device="cpu")
        ranges = _ranges(distances, config.relative_attention_num_buckets, self.longest, causal)
        self.register_buffer("ranges", ranges, persistent=False)

    def forward(self, q: Tensor, k: Tensor, distance: Tensor) -> Tensor:
        """Give what is added to the scores, `[B, H, Lq, Lk]`; a `ScoreBias`."""
        by_distance = self.table.weight[self.ranges]
        places = distance.clamp(-self.longest, self.longest) + self.longest
        return F.embedding(places, by_distance).permute(0, 3, 1, 2)


def _ranges(distances: Tensor, count: int, longest: int, causal: bool) -> Tensor:
    """Number the ranges of distances, key minus query, as T5 does."""
    if causal:
        first, away = torch.zeros_like(distances), -distances.clamp(max=0)
    else:
        count //= 2
        first, away = (distances > 0) * count, distances.abs()
    # Half of the ranges hold one distance each; the others grow to the longest distance.
    exact = count // 2
    share = torch.log(away.float() / exact) / math.log(longest / exact)
    grown = exact + (share * (count - exact)).to(torch.long)
    return first + torch.where(away < exact, away, grown.clamp(max=count - 1))


class FinalNorm(RMSNorm):
    """The norm after the last layer of a stack, with the dropout that follows it."""

    def __init__(self, config: T5Config) -> None:
        super().__init__(config.d_model, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    @override
    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(super().forward(x))
        return dropped


class T5Embeddings(PairEmbeddings):
    """Tokens alone, then dropout; and the tables of distances, one for each stack.

    `targets` is None: source and target share one table of tokens.
    """

    targets = None

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.d_model)
        self.source_places = RelativePositions(config, causal=False)
        if config.is_encoder_decoder:
            self.target_places = RelativePositions(config, causal=True)
        self.dropout = Dropout(config.dropout_rate)

    @property
    def output(self) -> Tensor:
        """The table of the vocabulary, `[vocab, hidden]`."""
        return self.tokens.weight

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded: Tensor = self.dropout(self.tokens(batch.tokens))
        return embedded

    @override
    def of_targets(self, batch: PackedBatch, longest: int) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]


def _layers(config: T5Config, count: int, places: RelativePositions, *, causal: bool) -> list[Any]:
    """The layers of a stack; those of the decoder are causal and attend to the source."""
    sizes, rate = (config.d_model, config.num_heads, config.dropout_rate), config.dropout_rate
    kind = GatedFeedForward if config.gated else FeedForward
    return [
        PreNormLayer(
            config.d_model,
            config.num_heads,
            config.d_ff,
            config.activation,
            dropout=rate,
            attention_dropout=rate,
            eps=config.layer_norm_epsilon,
            causal=causal,
            cross=causal,
            attention=SelfAttention(
                *sizes,
                head_dim=config.d_kv,
                qkv_bias=False,
                output_bias=False,
                scale=1.0,
                score_bias=places,
            ),
            cross_attention=CrossAttention(*sizes, head_dim=config.d_kv, bias=False, scale=1.0)
            if causal
            else None,
            feed_forward=kind(
                config.d_model, config.d_ff, config.activation, bias=False, dropout=rate
            ),
            norm=lambda size: RMSNorm(size, config.layer_norm_epsilon),
        )
        for _ in range(count)
    ]


class T5Weights(Backbone):
    """A backbone whose fresh weights are drawn as T5's: what goes into a sum has a variance of 1.

    Queries are smaller by the root of a head's width, which stands for the scale of the scores.
    """

    config: T5Config

    @override
    def init_weights(self, module: nn.Module | None = None) -> None:
        super().init_weights(module)
        for part in (module or self).modules():
            _draw(part, self.config)


def _draw(part: nn.Module, config: T5Config) -> None:
    """Draw the fresh weights of one module, if it is a part of a T5."""
    factor, hidden = config.initializer_factor, config.d_model**-0.5
    width = (config.num_heads * config.d_kv) ** -0.5
    inner = config.d_ff**-0.5

    def draw(weight: Tensor, std: float) -> None:
        if not weight.is_meta:
            nn.init.normal_(weight, std=factor * std)

    if isinstance(part, SelfAttention):
        draw(part.qkv.weight, hidden)
        if not part.qkv.weight.is_meta:
            with torch.no_grad():
                part.qkv.weight[: part.width] *= config.d_kv**-0.5
        draw(part.output.weight, width)
    elif isinstance(part, CrossAttention):
        draw(part.query.weight, hidden * config.d_kv**-0.5)
        draw(part.kv.weight, hidden)
        draw(part.output.weight, width)
    elif isinstance(part, FeedForward | GatedFeedForward):
        draw((part.up if isinstance(part, FeedForward) else part.gate_up).weight, hidden)
        draw(part.down.weight, inner)
    elif isinstance(part, RelativePositions):
        draw(part.table.weight, hidden)
    elif isinstance(part, T5Embeddings):
        draw(part.tokens.weight, 1.0)


class T5Model(T5Weights, EncoderDecoder):
    """Pairs in, the decoder's last hidden states out."""

    config_class = T5Config
    config: T5Config
    embeddings: T5Embeddings

    def __init__(self, config: T5Config) -> None:
        embeddings = T5Embeddings(config)
        super().__init__(
            config,
            embeddings,
            _layers(config, config.num_layers, embeddings.source_places, causal=False),
            _layers(config, config.num_decoder_layers or 0, embeddings.target_places, causal=True),
            (FinalNorm(config), FinalNorm(config)),
        )
        self.init_weights()


class MT5Model(T5Model):
    """The same with mT5's sizes."""

    config_class = MT5Config


class T5Encoder(T5Weights):
    """The encoder alone: texts in, hidden states out."""

    config_class = T5EncoderConfig
    config: T5EncoderConfig

    def __init__(self, config: T5EncoderConfig) -> None:
        embeddings = T5Embeddings(config)
        layers = _layers(config, config.num_layers, embeddings.source_places, causal=False)
        super().__init__(config, embeddings, layers, FinalNorm(config))
        self.init_weights()


class MT5Encoder(T5Encoder):
    """The same with mT5's sizes."""

    config_class = MT5EncoderConfig


class T5Writer(SourceReader):
    """The next token of each target, as transformers' `T5ForConditionalGeneration`."""

    backbone: T5Model

    def __init__(self, backbone: T5Model) -> None:
        super().__init__()
        self.backbone = backbone
        config = backbone.config
        self.scale = config.output_scale
        self.ties_output = config.tie_word_embeddings
        self.lm_head = None
        if not self.ties_output:
            self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
            if not self.lm_head.weight.is_meta:
                nn.init.normal_(self.lm_head.weight, std=config.initializer_factor)

    @override
    def decode(self, hidden: Tensor, *scoring: Any, **options: Any) -> Any:
        scaled = hidden if self.scale == 1 else hidden * self.scale
        return super().decode(scaled, *scoring, **options)

    @override
    def output_table(self) -> Tensor:
        return super().output_table() if self.lm_head is None else self.lm_head.weight

    @override
    def grow_output(self, added: int) -> None:
        if self.lm_head is not None:
            self.lm_head.grow(added)


class T5Tagger(TokenClassifier):
    """A linear map of each hidden state of the encoder."""

    def __init__(self, backbone: T5Encoder, labels: int, dropout: float | None = None) -> None:
        rate = backbone.config.classifier_dropout if dropout is None else dropout
        super().__init__(backbone, labels, rate)


def _attention(ours: str, theirs: str, stack: int) -> tuple[Rule, ...]:
    return rules(
        (f"layers.{{i}}.{ours}.qkv.weight", tuple(f"{theirs}.{part}.weight" for part in "qkv")),
        (f"layers.{{i}}.{ours}.output.weight", f"{theirs}.o.weight"),
        stack=stack,
    )


def _stack_rules(name: str, stack: int, last: int, gated: bool) -> tuple[Rule, ...]:
    """The names that the layers of encoder and decoder have in common."""
    layer = f"{name}.block.{{i}}.layer"
    block = f"{layer}.{last}.DenseReluDense"
    up: tuple[str, str | tuple[str, ...]] = (
        ("gate_up.weight", (f"{block}.wi_0.weight", f"{block}.wi_1.weight"))
        if gated
        else ("up.weight", f"{block}.wi.weight")
    )
    return (
        *_attention("attention", f"{layer}.0.SelfAttention", stack),
        *rules(
            ("layers.{i}.attention_norm.weight", f"{layer}.0.layer_norm.weight"),
            (f"layers.{{i}}.feed_forward.{up[0]}", up[1]),
            ("layers.{i}.feed_forward.down.weight", f"{block}.wo.weight"),
            ("layers.{i}.feed_forward_norm.weight", f"{layer}.{last}.layer_norm.weight"),
            stack=stack,
        ),
    )


_PLACES = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_CROSS = "decoder.block.{i}.layer.1"


def _rules(gated: bool, encoder_only: bool) -> tuple[Rule, ...]:
    encoder = (
        *rules(
            ("embeddings.tokens.weight", "shared.weight"),
            ("embeddings.source_places.table.weight", f"encoder.{_PLACES}"),
        ),
        *_stack_rules("encoder", 0, 1, gated),
    )
    if encoder_only:
        return (*encoder, *rules(("final_norm.weight", "encoder.final_layer_norm.weight")))
    attention = f"{_CROSS}.EncDecAttention"
    return (
        *encoder,
        *rules(
            ("source_norm.weight", "encoder.final_layer_norm.weight"),
            ("embeddings.target_places.table.weight", f"decoder.{_PLACES}"),
            ("final_norm.weight", "decoder.final_layer_norm.weight"),
        ),
        *_stack_rules("decoder", 1, 2, gated),
        *rules(
            ("layers.{i}.cross.query.weight", f"{attention}.q.weight"),
            ("layers.{i}.cross.kv.weight", (f"{attention}.k.weight", f"{attention}.v.weight")),
            ("layers.{i}.cross.output.weight", f"{attention}.o.weight"),
            ("layers.{i}.cross_norm.weight", f"{_CROSS}.layer_norm.weight"),
            stack=1,
        ),
    )


#: Second names of the table of tokens.
_COPIES = {
    f"{stack}.embed_tokens.weight": "embeddings.tokens.weight" for stack in ("encoder", "decoder")
}
_OUTPUT = "lm_head.weight"


def _settled(config: Mapping[str, Any], differ: Callable[[str, str], bool]) -> dict[str, Any]:
    """Say of a file's output layer what it is, as transformers 5 finds it.

    Args:
        config: the contents of `config.json`.
        differ: whether the file has both tensors, with other values.
    """
    scaled = config.get("scale_decoder_outputs")
    if scaled is None:
        scaled = config.get("tie_word_embeddings") is not False
    own = {"scale_decoder_outputs": scaled} if config.get("model_type") == "t5" else {}
    return {**config, **own, "tie_word_embeddings": not differ(_OUTPUT, "shared.weight")}


def _heads(kind: str, tied: bool) -> dict[str, HeadLayout]:
    """The heads of the whole model; `kind` is T5 or MT5."""
    own = () if tied else rules((_OUTPUT, _OUTPUT))
    second = {_OUTPUT: "embeddings.tokens.weight"} if tied else {}
    return {
        "backbone": HeadLayout(f"{kind}Model", tied=_COPIES),
        "translation": HeadLayout(
            f"{kind}ForConditionalGeneration",
            lambda backbone, labels: T5Writer(backbone),
            own,
            {**_COPIES, **second},
        ),
    }


def _encoder_heads(kind: str) -> dict[str, HeadLayout]:
    """The heads of the encoder alone."""
    return {
        "backbone": HeadLayout(f"{kind}EncoderModel", tied=_COPIES),
        "token_classification": HeadLayout(
            f"{kind}ForTokenClassification",
            T5Tagger,
            rules(("classifier", "classifier")),
            _COPIES,
        ),
    }


def _family(model_type: str, config: Mapping[str, Any]) -> Family:
    """The family's layout: gated or not, with an output layer of its own or not, or no decoder."""
    kind = "MT5" if model_type == "mt5" else "T5"
    usual = MT5Config.feed_forward_proj if model_type == "mt5" else T5Config.feed_forward_proj
    gated = str(config.get("feed_forward_proj") or usual).startswith("gated-")
    classes = str((config.get("architectures") or [""])[0])
    encoder_only = config.get("is_encoder_decoder") is False or classes.startswith(
        (f"{kind}Encoder", f"{kind}ForToken")
    )
    tied = config.get("tie_word_embeddings") is not False
    models: dict[tuple[str, bool], type[Backbone]] = {
        ("T5", False): T5Model,
        ("MT5", False): MT5Model,
        ("T5", True): T5Encoder,
        ("MT5", True): MT5Encoder,
    }
    return Family(
        model_type=model_type,
        # Only classes that hold the whole model as a part have a prefix.
        prefix="transformer." if encoder_only else "",
        backbone=models[kind, encoder_only],
        rules=_rules(gated, encoder_only),
        heads=_encoder_heads(kind) if encoder_only else _heads(kind, tied),
        # Attention to the source knows no distances, but older files have a table for them.
        ignored=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
        other_heads=("decoder", _OUTPUT.partition(".")[0], "classification_head", "qa_outputs"),
        presets={} if encoder_only else _PRESETS[model_type],
        variant=lambda config: _family(model_type, config),
        settled=_settled,
    )


def _v1(layers: int, hidden: int, inner: int, heads: int, width: int = 64) -> dict[str, Any]:
    names = ("num_layers", "d_model", "d_ff", "num_heads", "d_kv")
    return dict(zip(names, (layers, hidden, inner, heads, width), strict=True))


def _gated(layers: int, hidden: int, inner: int, heads: int) -> dict[str, Any]:
    sizes = _v1(layers, hidden, inner, heads)
    return {**sizes, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


#: Raffel et al. 2020, section 3.7; version 1.1 and mT5 as published. FLAN has the sizes of 1.1.
_GATED = {
    "small": _gated(8, 512, 1024, 6),
    "base": _gated(12, 768, 2048, 12),
    "large": _gated(24, 1024, 2816, 16),
    "xl": _gated(24, 2048, 5120, 32),
}
_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "t5": {
        "t5-small": _v1(6, 512, 2048, 8),
        "t5-base": _v1(12, 768, 3072, 12),
        "t5-large": _v1(24, 1024, 4096, 16),
        "t5-3b": _v1(24, 1024, 16384, 32, 128),
        **{f"t5-v1.1-{name}": sizes for name, sizes in _GATED.items()},
    },
    "mt5": {f"mt5-{name}": sizes for name, sizes in _GATED.items()},
}

FAMILY = _family("t5", {})
MT5 = _family("mt5", {})
