"""ALBERT (Lan et al. 2020, arXiv:1909.11942): a BERT whose layers all have the same weights.

Its embeddings are narrower than its hidden states (section 3.1, "Factorized embedding
parameterization"), and one layer is run many times ("Cross-layer parameter sharing"). Beside masked
tokens it learns whether two texts are in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.bert import (
    ENCODER_IGNORED,
    BertClassifier,
    BertEmbeddings,
    BertPreTraining,
    EncoderConfig,
    PooledEncoder,
    bert_masked_lm,
)
from pretune.models.config import MAX_SIZES, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.pooled import choosing
from pretune.models.heads.token import token_heads
from pretune.models.layers import Linear


@dataclass(frozen=True)
class AlbertConfig(EncoderConfig):
    """The sizes of an ALBERT, under the names of `config.json`; defaults as in transformers.

    Attributes:
        embedding_size: the width of the embeddings.
        classifier_dropout_prob: the dropout of the heads.
    """

    model_type: ClassVar[str] = "albert"

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("embedding_size", int, 1, MAX_SIZES["hidden_size"])
        self.check("classifier_dropout_prob", float, 0, 1)

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        # transformers' class can be configured to these, but no ALBERT was published as such.
        usual = {
            "num_hidden_groups": 1,
            "inner_group_num": 1,
            "position_embedding_type": "absolute",
        }
        for name, value in usual.items():
            if values.get(name) not in (None, value):
                raise CheckpointError(
                    f"config: {name} is {brief(repr(values[name]))}, not {value!r}",
                    "Only ALBERT as published is supported: all layers share one set of weights.",
                )
        return super().from_dict(values)

    @property
    @override
    def hidden_dropout(self) -> float:
        return self.classifier_dropout_prob


class AlbertEmbeddings(BertEmbeddings):
    """BERT's embeddings, then a linear map to the hidden size."""

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__(config, config.embedding_size)
        self.project = Linear(config.embedding_size, config.hidden_size)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded: Tensor = self.project(super().forward(batch))
        return embedded


class AlbertModel(PooledEncoder):
    """ALBERT's encoder: `layers` is one layer, as often as it runs."""

    config_class = AlbertConfig
    config: AlbertConfig

    def __init__(self, config: AlbertConfig) -> None:
        layers = [config.layer()] * config.num_hidden_layers
        super().__init__(config, AlbertEmbeddings(config), layers)


_CLASSIFIER = rules(("classifier", "classifier"))
_MASKED_LM = rules(
    ("transform", "predictions.dense"),
    ("norm", "predictions.LayerNorm"),
    ("bias", "predictions.bias"),
)
_TIED = {
    "predictions.decoder.weight": "embeddings.tokens.weight",
    "predictions.decoder.bias": "bias",
}
#: Where the weights of the one layer are.
_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"

FAMILY = Family(
    model_type="albert",
    prefix="albert.",
    backbone=AlbertModel,
    rules=rules(
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.segments.weight", "embeddings.token_type_embeddings.weight"),
        ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        ("embeddings.project", "encoder.embedding_hidden_mapping_in"),
        (
            "layers.{i}.attention.qkv",
            tuple(f"{_LAYER}.attention.{part}" for part in ("query", "key", "value")),
        ),
        ("layers.{i}.attention.output", f"{_LAYER}.attention.dense"),
        ("layers.{i}.attention_norm", f"{_LAYER}.attention.LayerNorm"),
        ("layers.{i}.feed_forward.up", f"{_LAYER}.ffn"),
        ("layers.{i}.feed_forward.down", f"{_LAYER}.ffn_output"),
        ("layers.{i}.feed_forward_norm", f"{_LAYER}.full_layer_layer_norm"),
        ("pooler", "pooler"),
    ),
    heads={
        "backbone": HeadLayout("AlbertModel"),
        "sequence_classification": HeadLayout(
            "AlbertForSequenceClassification", BertClassifier, _CLASSIFIER, pooled="classifier"
        ),
        "multiple_choice": HeadLayout(
            "AlbertForMultipleChoice", choosing(BertClassifier), _CLASSIFIER, pooled="classifier"
        ),
        **token_heads("Albert"),
        "masked_lm": HeadLayout("AlbertForMaskedLM", bert_masked_lm, _MASKED_LM, _TIED),
        "pretraining": HeadLayout(
            "AlbertForPreTraining",
            lambda backbone, labels: BertPreTraining(
                backbone, backbone.config.classifier_dropout_prob
            ),
            (*_MASKED_LM, *rules(("relationship", "sop_classifier.classifier"))),
            _TIED,
            pooled="relationship",
        ),
    },
    ignored=ENCODER_IGNORED,
    optional=("pooler",),
    # Lan et al. 2020, table 1; the dropouts are those of version 2.
    presets={
        f"albert-{name}": {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
        }
        for name, layers, hidden, heads in (
            ("base", 12, 768, 12),
            ("large", 24, 1024, 16),
            ("xlarge", 24, 2048, 16),
            ("xxlarge", 12, 4096, 64),
        )
    },
    tokenizer="minilm",
)
