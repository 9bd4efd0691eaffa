"""EuroBERT (Boizard et al. 2025, arXiv:2503.05500): an encoder with the layers of a Llama.

Pre-norm with RMSNorm, rotary positions, grouped queries and gated feed-forward blocks, but every
token sees the whole text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, TokenEmbeddings
from pretune.models.config import MAX_SIZES, ModelConfig, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import LanguageModelHead
from pretune.models.heads.pooled import PooledHead
from pretune.models.heads.token import CRF_RULES, CrfTagger, TokenClassifier, TokenDetector
from pretune.models.layers import (
    Dropout,
    GatedFeedForward,
    Linear,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
    sample_rows,
)
from pretune.models.rope import Rope, read_rope_parameters, refuse_partial_rope

#: What a sequence classifier reads: the first token, the mean of all tokens, or (late) it answers
#: for each token, and the mean of the answers counts.
POOLINGS = ("bos", "mean", "late")
#: Of the rotary positions, where `config.json` has none.
THETA = 10_000.0


@dataclass(frozen=True)
class EuroBertConfig(ModelConfig):
    """The sizes of a EuroBERT, under the names of `config.json`; the defaults are the 210m's.

    Attributes:
        num_key_value_heads: heads of keys and values; None: as many as of queries.
        head_dim: width of a head; None: the hidden size divided by the heads.
        rope_parameters: the rotary positions, as transformers 5 has them.
        attention_bias: whether the linear maps of attention have biases.
        mlp_bias: whether those of the feed-forward blocks do, and the output layer.
        tie_word_embeddings: whether the output layer is the table of embeddings.
        classifier_pooling: of `POOLINGS`.
    """

    model_type: ClassVar[str] = "eurobert"
    # EuroBERT has dropout of attention weights only; this is what heads may have.
    dropout_names: ClassVar[tuple[str, ...]] = ("attention_dropout",)
    attention_dropout_name: ClassVar[str] = "attention_dropout"
    activation_name: ClassVar[str] = "hidden_act"
    eps_name: ClassVar[str] = "rms_norm_eps"

    vocab_size: int = 128256
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_parameters: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False
    classifier_pooling: str = "late"
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    mask_token_id: int | None = None

    def __post_init__(self) -> None:
        self.check_common()
        self.check_flags("attention_bias", "mlp_bias", "tie_word_embeddings")
        for name in ("num_key_value_heads", "head_dim"):
            if getattr(self, name) is not None:
                self.check(name, int, 1, MAX_SIZES["num_attention_heads"])
        if self.num_attention_heads % self.key_value_heads:
            raise CheckpointError(
                f"config: num_attention_heads {self.num_attention_heads} is not divisible by "
                f"num_key_value_heads {self.key_value_heads}"
            )
        if self.classifier_pooling not in POOLINGS:
            raise CheckpointError(
                f"config: classifier_pooling '{brief(self.classifier_pooling)}' is unknown here",
                f"Known: {', '.join(POOLINGS)}.",
            )
        self.rope()  # what makes no sense there is an error

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        parameters = read_rope_parameters(values, THETA)
        refuse_partial_rope(parameters, cls.model_type)
        return super().from_dict({**values, "rope_parameters": parameters})

    @override
    def to_dict(self) -> dict[str, Any]:
        parameters = self._rope_parameters
        # The theta also where the first files have it. transformers wants a number or nothing.
        entries = {**super().to_dict(), "rope_parameters": parameters}
        if self.mask_token_id is None:
            del entries["mask_token_id"]
        return {**entries, "rope_theta": parameters["rope_theta"]}

    @property
    @override
    def hidden_dropout(self) -> float:
        return 0.0

    @property
    def key_value_heads(self) -> int:
        """The number of heads of keys and values."""
        own = self.num_key_value_heads
        return self.num_attention_heads if own is None else own

    @property
    def head_size(self) -> int:
        """The width of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def rope(self) -> Rope:
        """The rotary positions."""
        return Rope.of(self._rope_parameters, self.head_size, self.max_position_embeddings)

    @property
    def _rope_parameters(self) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": THETA, **(self.rope_parameters or {})}


class EuroBertModel(Backbone):
    """The encoder: packed batch in, hidden states out."""

    config_class = EuroBertConfig
    config: EuroBertConfig

    def __init__(self, config: EuroBertConfig) -> None:
        rope = config.rope()
        layers = [_layer(config, rope) for _ in range(config.num_hidden_layers)]
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        super().__init__(config, TokenEmbeddings(config), layers, norm)
        self.init_weights()


def _layer(config: EuroBertConfig, rope: Rope) -> PreNormLayer:
    """Make a layer, with fresh weights."""
    attention = SelfAttention(
        *(config.hidden_size, config.num_attention_heads, config.attention_dropout),
        num_kv_heads=config.key_value_heads,
        head_dim=config.head_size,
        qkv_bias=config.attention_bias,
        output_bias=config.attention_bias,
        rope=rope,
    )
    feed_forward = GatedFeedForward(
        *(config.hidden_size, config.intermediate_size, config.hidden_act), bias=config.mlp_bias
    )
    return PreNormLayer(
        *(config.hidden_size, config.num_attention_heads, config.intermediate_size),
        config.hidden_act,
        dropout=0.0,
        attention_dropout=config.attention_dropout,
        eps=config.rms_norm_eps,
        attention=attention,
        feed_forward=feed_forward,
        norm=lambda size: RMSNorm(size, config.rms_norm_eps),
    )


class _Answer(nn.Module):
    """Dense, GELU, dropout and a linear map."""

    def __init__(self, backbone: EuroBertModel, labels: int, dropout: float | None) -> None:
        super().__init__()
        size = backbone.config.hidden_size
        self.dense, self.classifier = Linear(size, size), Linear(size, labels)
        self.dropout = Dropout(backbone.config.hidden_dropout if dropout is None else dropout)
        backbone.init_weights(self)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[rows, hidden]` to logits `[rows, labels]`."""
        logits: Tensor = self.classifier(self.dropout(F.gelu(self.dense(hidden))))
        return logits


class EuroBertClassifier(PooledHead):
    """An answer to the first token, or to the mean of all tokens."""

    backbone: EuroBertModel

    def __init__(self, backbone: EuroBertModel, labels: int, dropout: float | None = None) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, backbone.config.classifier_pooling
        self.output = _Answer(backbone, labels, dropout)

    @override
    def read(self, batch: PackedBatch) -> Tensor:
        if self.pooling == "bos":
            return super().read(batch)
        return batch.means(self.backbone(batch).last_hidden_state)

    @override
    def answer(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.output(pooled)
        return logits


class LateClassifier(nn.Module):
    """The mean of the answers to all tokens of a sequence."""

    def __init__(self, backbone: EuroBertModel, labels: int, dropout: float | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.output = _Answer(backbone, labels, dropout)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Give logits `[B, labels]`, in the order of the batch's sequences."""
        return batch.means(self.output(self.backbone(batch).last_hidden_state))


def _classifier(backbone: EuroBertModel, labels: int, dropout: float | None = None) -> nn.Module:
    late = backbone.config.classifier_pooling == "late"
    return (LateClassifier if late else EuroBertClassifier)(backbone, labels, dropout)


class EuroBertMaskedLM(LanguageModelHead):
    """The output layer alone: the table of embeddings, or a matrix of its own."""

    def __init__(self, backbone: EuroBertModel) -> None:
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self.ties_output = config.tie_word_embeddings
        self.lm_head: Linear | None = None
        if not self.ties_output:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
            backbone.init_weights(self.lm_head)
        bias = backbone.embeddings.tokens.weight.new_zeros(config.vocab_size)
        self.bias = nn.Parameter(bias) if config.mlp_bias else None

    @override
    def output_table(self) -> Tensor:
        return super().output_table() if self.lm_head is None else self.lm_head.weight

    @override
    def output_bias(self) -> Tensor | None:
        return self.bias

    @override
    def grow_output(self, added: int) -> None:
        if self.lm_head is not None:
            with torch.no_grad():
                table = torch.cat([self.lm_head.weight, sample_rows(self.lm_head.weight, added)])
            self.lm_head.weight = nn.Parameter(table)
            self.lm_head.out_features = len(table)
        if self.bias is not None:
            bias = self.bias.detach()
            self.bias = nn.Parameter(torch.cat([bias, bias.mean().expand(added)]))


_CLASSIFIER = rules(("output.dense", "dense"), ("output.classifier", "classifier"))
_LINEAR = rules(("classifier", "classifier"))
_BIAS = rules(("bias", "lm_head.bias"))
_TOKENS = "EuroBertForTokenClassification"


def _masked_lm(tied: bool) -> HeadLayout:
    """The head for masked tokens, whose output layer is the table of tokens or a matrix."""
    output = () if tied else rules(("lm_head.weight", "lm_head.weight"))
    return HeadLayout(
        "EuroBertForMaskedLM",
        lambda backbone, labels: EuroBertMaskedLM(backbone),
        (*output, *_BIAS),
        {"lm_head.weight": "embeddings.tokens.weight"} if tied else {},
    )


def _variant(config: Mapping[str, Any]) -> Family:
    """Pick the family whose output layer is that of a `config.json`."""
    return TIED if config.get("tie_word_embeddings") is True else FAMILY


FAMILY = Family(
    model_type="eurobert",
    prefix="model.",
    backbone=EuroBertModel,
    rules=rules(
        ("embeddings.tokens.weight", "embed_tokens.weight"),
        ("layers.{i}.attention_norm", "layers.{i}.input_layernorm"),
        (
            "layers.{i}.attention.qkv",
            tuple(f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv"),
        ),
        ("layers.{i}.attention.output", "layers.{i}.self_attn.o_proj"),
        ("layers.{i}.feed_forward_norm", "layers.{i}.post_attention_layernorm"),
        (
            "layers.{i}.feed_forward.gate_up",
            tuple(f"layers.{{i}}.mlp.{part}_proj" for part in ("gate", "up")),
        ),
        ("layers.{i}.feed_forward.down", "layers.{i}.mlp.down_proj"),
        ("final_norm", "norm"),
    ),
    heads={
        "backbone": HeadLayout("EuroBertModel"),
        "sequence_classification": HeadLayout(
            "EuroBertForSequenceClassification", _classifier, _CLASSIFIER
        ),
        "replaced_tokens": HeadLayout(_TOKENS, TokenDetector, _LINEAR),
        "token_classification_crf": HeadLayout(_TOKENS, CrfTagger, (*_LINEAR, *CRF_RULES)),
        "token_classification": HeadLayout(_TOKENS, TokenClassifier, _LINEAR),
        "masked_lm": _masked_lm(tied=False),
    },
    ignored=("rotary_emb.inv_freq", "layers.{i}.self_attn.rotary_emb.inv_freq"),
    # Boizard et al. 2025, table 1.
    presets={
        f"eurobert-{name}": {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "rope_theta": 250_000.0,
        }
        for name, layers, hidden, inner, heads, groups in (
            ("210m", 12, 768, 3072, 12, 12),
            ("610m", 26, 1152, 4096, 18, 6),
            ("2.1b", 32, 2304, 6144, 18, 6),
        )
    },
    tokenizer="minilm",
    variant=_variant,
)
#: With the table of embeddings for an output layer.
TIED = replace(FAMILY, heads={**FAMILY.heads, "masked_lm": _masked_lm(tied=True)})
