"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): a pre-norm encoder for long texts.

Queries and keys are turned by their positions (RoPE). Every third layer sees the whole text; the
others see only tokens nearby, and turn faster. No linear map and no LayerNorm has a bias, and what
goes through the feed-forward block passes a gate (GeGLU). mmBERT has the same layers with another
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import MAX_SIZES, ModelConfig, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import LanguageModelHead
from pretune.models.heads.pooled import PooledHead, choosing
from pretune.models.heads.token import CRF_RULES, CrfTagger, TokenClassifier, TokenDetector
from pretune.models.heads.vocabulary import Scores
from pretune.models.layers import (
    ACTIVATIONS,
    Dropout,
    Embedding,
    GatedFeedForward,
    Linear,
    PreNormLayer,
    SelfAttention,
)
from pretune.models.rope import Rope, read_rope_parameters

#: The kinds of layers: one sees the whole text, the other only tokens nearby.
GLOBAL, LOCAL = "full_attention", "sliding_attention"
#: Theta of their rotary positions, unless `config.json` has other ones.
_THETAS = {GLOBAL: 160_000.0, LOCAL: 10_000.0}
#: What pooled heads read: the first token, or the mean of all.
POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class ModernBertConfig(ModelConfig):
    """The sizes of a ModernBERT, under the names of `config.json`; the defaults are the base's.

    Attributes:
        local_attention: tokens that a local layer sees, half of them to each side.
        layer_types: the kind of each layer; empty: one global layer, then local ones up to the
            next multiple of `global_attn_every_n_layers`.
        rope_parameters: the rotary positions of each kind of layer, as transformers 5 has them.
        classifier_pooling: of `POOLINGS`.
        classifier_bias: whether the dense part of heads has a bias.
        decoder_bias: whether the output layer for masked tokens has a bias.
        initializer_cutoff_factor: fresh weights are within so many standard deviations.
    """

    model_type: ClassVar[str] = "modernbert"
    dropout_names: ClassVar[tuple[str, ...]] = ("embedding_dropout", "mlp_dropout")
    attention_dropout_name: ClassVar[str] = "attention_dropout"
    activation_name: ClassVar[str] = "hidden_activation"
    eps_name: ClassVar[str] = "norm_eps"

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    hidden_activation: str = "gelu"
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    local_attention: int = 128
    global_attn_every_n_layers: int = 3
    layer_types: Sequence[str] = ()
    rope_parameters: Mapping[str, Any] | None = None
    decoder_bias: bool = True
    classifier_pooling: str = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    initializer_cutoff_factor: float = 2.0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __post_init__(self) -> None:
        self.check_common()
        self.check("classifier_dropout", float, 0, 1)
        self.check("local_attention", int, 1, MAX_SIZES["max_position_embeddings"])
        self.check("global_attn_every_n_layers", int, 1, MAX_SIZES["num_hidden_layers"])
        self.check("initializer_cutoff_factor", float, 0, 100)
        biases = ("norm", "attention", "mlp", "decoder", "classifier")
        self.check_flags(*(f"{part}_bias" for part in biases))
        for name, known in (
            ("classifier_pooling", POOLINGS),
            ("classifier_activation", tuple(ACTIVATIONS)),
        ):
            if getattr(self, name) not in known:
                raise CheckpointError(
                    f"config: {name} '{brief(getattr(self, name))}' is unknown here",
                    f"Known: {', '.join(known)}.",
                )
        types = self.layer_types
        if types and not (
            isinstance(types, list | tuple)
            and len(types) == self.num_hidden_layers
            and {*map(str, types)} <= {*_THETAS}
        ):
            raise CheckpointError(
                f"config: layer_types must say {' or '.join(_THETAS)} of each of "
                f"{self.num_hidden_layers} layers, not {brief(types)}"
            )
        self.ropes()  # what makes no sense there is an error

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        # Older files have a theta for each kind of layer; null for the local ones means the other.
        theta = values.get("global_rope_theta")
        theta = _THETAS[GLOBAL] if theta is None else theta
        near = values.get("local_rope_theta", _THETAS[LOCAL])
        thetas = {GLOBAL: theta, LOCAL: theta if near is None else near}
        # transformers also takes the half of a window, and then that counts.
        half = values.get("sliding_window")
        if half is not None:
            values = {**values, "local_attention": 2 * half if isinstance(half, int) else half}
        given = {name: values.get(name) for name in ("rope_parameters", "rope_scaling")}
        parameters = {k: read_rope_parameters(given, t, [*thetas])[k] for k, t in thetas.items()}
        return super().from_dict({**values, "rope_parameters": parameters})

    @override
    def to_dict(self) -> dict[str, Any]:
        # The thetas also under the names that transformers 4 reads.
        ropes = {kind: self._rope(kind) for kind in _THETAS}
        return {
            **super().to_dict(),
            "layer_types": self.kinds,
            "rope_parameters": ropes,
            "global_rope_theta": ropes[GLOBAL]["rope_theta"],
            "local_rope_theta": ropes[LOCAL]["rope_theta"],
        }

    @override
    def with_layers(self, kept: Sequence[int], **entries: Any) -> Self:
        if kept[0] != 0:
            raise CheckpointError(
                f"layer 0 of a {self.model_type} has no LayerNorm before its attention, so that no "
                "other layer can come first",
                "Keep layer 0.",
            )
        kinds = [self.kinds[number] for number in kept]
        return super().with_layers(kept, layer_types=kinds, **entries)

    @property
    @override
    def hidden_dropout(self) -> float:
        return self.classifier_dropout

    @property
    def kinds(self) -> list[str]:
        """The kind of each layer, `GLOBAL` or `LOCAL`."""
        every, count = self.global_attn_every_n_layers, self.num_hidden_layers
        return [*self.layer_types] or [LOCAL if i % every else GLOBAL for i in range(count)]

    def ropes(self) -> dict[str, Rope]:
        """The rotary positions of each kind of layer."""
        size = self.hidden_size // self.num_attention_heads
        return {
            kind: Rope.of(self._rope(kind), size, self.max_position_embeddings) for kind in _THETAS
        }

    def _rope(self, kind: str) -> dict[str, Any]:
        """The entry of `rope_parameters` for a kind of layer."""
        usual = {"rope_type": "default", "rope_theta": _THETAS[kind]}
        return {**usual, **(self.rope_parameters or {}).get(kind, {})}


class ModernBertEmbeddings(Embeddings):
    """LayerNorm(token), then dropout: there is no table of positions."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.hidden_size)
        self.norm = _norm(config)
        self.dropout = Dropout(config.embedding_dropout)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded: Tensor = self.dropout(self.norm(self.tokens(batch.tokens)))
        return embedded


class ModernBertModel(Backbone):
    """The encoder: packed batch in, hidden states out."""

    config_class = ModernBertConfig
    config: ModernBertConfig

    def __init__(self, config: ModernBertConfig) -> None:
        ropes = config.ropes()
        layers = [_layer(config, kind, ropes[kind]) for kind in config.kinds]
        # The embeddings are normalised already.
        layers[0].attention_norm = nn.Identity()
        super().__init__(config, ModernBertEmbeddings(config), layers, _norm(config))
        self.init_weights()

    @override
    def init_weights(self, module: nn.Module | None = None) -> None:
        super().init_weights(module)
        # What is added to the residual stream starts smaller, by 1 / sqrt(2 L).
        scale = (2 * self.config.num_hidden_layers) ** -0.5
        for layer in self.layers:
            for name in ("attention.output", "feed_forward.down"):
                part = layer.get_submodule(name)
                if module in (None, part):
                    draw(part, self.config, self.config.initializer_range * scale)


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def _layer(config: ModernBertConfig, kind: str, rope: Rope) -> PreNormLayer:
    """Make a layer of one kind, with fresh weights."""
    attention = SelfAttention(
        *(config.hidden_size, config.num_attention_heads, config.attention_dropout),
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        window=config.local_attention // 2 + 1 if kind == LOCAL else None,
        rope=rope,
    )
    feed_forward = GatedFeedForward(
        *(config.hidden_size, config.intermediate_size, config.hidden_activation),
        bias=config.mlp_bias,
        dropout=config.mlp_dropout,
    )
    return PreNormLayer(
        *(config.hidden_size, config.num_attention_heads, config.intermediate_size),
        config.hidden_activation,
        dropout=0.0,
        attention_dropout=config.attention_dropout,
        eps=config.norm_eps,
        dropout_attended=config.attention_dropout,
        attention=attention,
        feed_forward=feed_forward,
        norm=lambda size: _norm(config),
    )


@torch.no_grad()
def draw(part: nn.Module, config: ModernBertConfig, std: float) -> None:
    """Draw fresh weights of a linear map, none of them far from 0; those on the meta device stay.

    Args:
        part: the linear map.
        config: says how far.
        std: standard deviation, before what lies too far is drawn again.
    """
    weight, far = part.get_parameter("weight"), config.initializer_cutoff_factor * std
    if not weight.is_meta:
        nn.init.trunc_normal_(weight, std=std, a=-far, b=far)


class PredictionHead(nn.Module):
    """Dense, activation, LayerNorm: what every head has before its output layer."""

    def __init__(self, backbone: ModernBertModel) -> None:
        super().__init__()
        config = backbone.config
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.activation = ACTIVATIONS[config.classifier_activation]
        self.norm = _norm(config)
        backbone.init_weights(self)
        std = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
        draw(self.dense, config, std)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[rows, hidden]` to `[rows, hidden]`."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed


class ModernBertClassifier(PooledHead):
    """The `PredictionHead`, dropout and a linear map on the first token or the mean of all."""

    backbone: ModernBertModel

    def __init__(
        self, backbone: ModernBertModel, labels: int, dropout: float | None = None
    ) -> None:
        super().__init__()
        config = backbone.config
        self.backbone, self.pooling = backbone, config.classifier_pooling
        self.transform = PredictionHead(backbone)
        self.dropout = Dropout(config.classifier_dropout if dropout is None else dropout)
        self.classifier = Linear(config.hidden_size, labels)
        backbone.init_weights(self.classifier)
        draw(self.classifier, config, config.hidden_size**-0.5)

    @override
    def read(self, batch: PackedBatch) -> Tensor:
        if self.pooling == "cls":
            return super().read(batch)
        return batch.means(self.backbone(batch).last_hidden_state)

    @override
    def answer(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.transform(pooled)))
        return logits


class ModernBertMaskedLM(LanguageModelHead):
    """The `PredictionHead`, then the tied output layer."""

    def __init__(self, backbone: ModernBertModel) -> None:
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self.transform = PredictionHead(backbone)
        bias = torch.zeros(config.vocab_size) if config.decoder_bias else None
        self.bias = None if bias is None else nn.Parameter(bias)

    @override
    def decode(self, hidden: Tensor, *scoring: Any, **options: Any) -> Tensor | Scores:
        return super().decode(self.transform(hidden), *scoring, **options)

    @override
    def output_bias(self) -> Tensor | None:
        return self.bias

    @override
    def grow_output(self, added: int) -> None:
        if self.bias is not None:
            bias = self.bias.detach()
            self.bias = nn.Parameter(torch.cat([bias, bias.mean().expand(added)]))


def _tagger(kind: type[TokenClassifier]) -> Any:
    """Make a builder of heads for tokens, of a class."""
    return lambda backbone, labels, dropout=None, **options: kind(
        backbone, labels, dropout, transform=PredictionHead(backbone), **options
    )


_TRANSFORM = rules(("transform.dense", "head.dense"), ("transform.norm", "head.norm"))
_CLASSIFIER = (*_TRANSFORM, *rules(("classifier", "classifier")))
_TOKENS = "ModernBertForTokenClassification"

FAMILY = Family(
    model_type="modernbert",
    prefix="model.",
    backbone=ModernBertModel,
    rules=rules(
        ("embeddings.tokens.weight", "embeddings.tok_embeddings.weight"),
        ("embeddings.norm", "embeddings.norm"),
        ("layers.{i}.attention_norm", "layers.{i}.attn_norm"),
        ("layers.{i}.attention.qkv", "layers.{i}.attn.Wqkv"),
        ("layers.{i}.attention.output", "layers.{i}.attn.Wo"),
        ("layers.{i}.feed_forward_norm", "layers.{i}.mlp_norm"),
        ("layers.{i}.feed_forward.gate_up", "layers.{i}.mlp.Wi"),
        ("layers.{i}.feed_forward.down", "layers.{i}.mlp.Wo"),
        ("final_norm", "final_norm"),
    ),
    heads={
        "backbone": HeadLayout("ModernBertModel"),
        "sequence_classification": HeadLayout(
            "ModernBertForSequenceClassification", ModernBertClassifier, _CLASSIFIER
        ),
        "multiple_choice": HeadLayout(
            "ModernBertForMultipleChoice", choosing(ModernBertClassifier), _CLASSIFIER
        ),
        "replaced_tokens": HeadLayout(_TOKENS, _tagger(TokenDetector), _CLASSIFIER),
        "token_classification_crf": HeadLayout(
            _TOKENS, _tagger(CrfTagger), (*_CLASSIFIER, *CRF_RULES)
        ),
        "token_classification": HeadLayout(_TOKENS, _tagger(TokenClassifier), _CLASSIFIER),
        "question_answering": HeadLayout(
            "ModernBertForQuestionAnswering",
            lambda backbone, labels: _tagger(TokenClassifier)(backbone, 2),
            _CLASSIFIER,
        ),
        "masked_lm": HeadLayout(
            "ModernBertForMaskedLM",
            lambda backbone, labels: ModernBertMaskedLM(backbone),
            (*_TRANSFORM, *rules(("bias", "decoder.bias"))),
            {"decoder.weight": "embeddings.tokens.weight"},
        ),
    },
    # As published; mmBERT: Marone et al. 2025, arXiv:2509.06888.
    presets={
        "modernbert-base": {},
        "modernbert-large": {
            "num_hidden_layers": 28,
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "intermediate_size": 2624,
        },
        **{
            f"mmbert-{name}": {
                "vocab_size": 256_000,
                "hidden_size": hidden,
                "num_attention_heads": hidden // 64,
                "local_rope_theta": 160_000.0,
                "classifier_pooling": "mean",
            }
            for name, hidden in (("small", 384), ("base", 768))
        },
    },
    tokenizer="minilm",
)
