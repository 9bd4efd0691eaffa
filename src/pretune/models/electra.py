"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): an encoder trained to tell replaced tokens apart.

It has BERT's layers. Its embeddings may be narrower than its hidden states, and then a linear map
leads from one to the other (section 3.2); there is no pooler. This is the discriminator, the part
that is fine-tuned. Published discriminators also carry the head of their pre-training, which is not
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import MAX_SIZES, ModelConfig
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.pooled import PooledHead
from pretune.models.heads.token import CRF_RULES, CrfTagger, TokenClassifier
from pretune.models.layers import Dropout, Embedding, Linear, PostNormLayer


@dataclass(frozen=True)
class ElectraConfig(ModelConfig):
    """The sizes of an ELECTRA, under the names of `config.json`; the defaults are ELECTRA-Small's.

    Attributes:
        embedding_size: the width of the embeddings.
        classifier_dropout: of the heads; default: `hidden_dropout_prob`.
    """

    model_type: ClassVar[str] = "electra"
    dropout_names: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob",)
    attention_dropout_name: ClassVar[str] = "attention_probs_dropout_prob"
    activation_name: ClassVar[str] = "hidden_act"
    eps_name: ClassVar[str] = "layer_norm_eps"

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        self.check_common()
        self.check("embedding_size", int, 1, MAX_SIZES["hidden_size"])
        self.check("pad_token_id", int, -1, MAX_SIZES["vocab_size"])
        if self.classifier_dropout is not None:
            self.check("classifier_dropout", float, 0, 1)

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        # transformers' class can be configured to these, but no ELECTRA was published as such.
        for name, usual in (("is_decoder", False), ("position_embedding_type", "absolute")):
            if values.get(name) not in (None, usual):
                raise CheckpointError(
                    f"config: {name} is not '{usual}'", "Only ELECTRA as published is supported."
                )
        return super().from_dict(values)

    @property
    @override
    def hidden_dropout(self) -> float:
        own = self.classifier_dropout
        return self.hidden_dropout_prob if own is None else own


class ElectraEmbeddings(Embeddings):
    """LayerNorm(token + position + segment), dropout, then a linear map to the hidden size."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.tokens = Embedding(config.vocab_size, size)
        self.segments = Embedding(config.type_vocab_size, size)
        self.positions = Embedding(config.max_position_embeddings, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.project = None if size == config.hidden_size else Linear(size, config.hidden_size)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.tokens(batch.tokens) + self.positions(batch.positions)
        first = self.segments.weight[0]
        x = x + (first if batch.segments is None else self.segments(batch.segments))
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded if self.project is None else self.project(embedded)


class ElectraModel(Backbone):
    """The encoder: packed batch in, hidden states out."""

    config_class = ElectraConfig
    config: ElectraConfig

    def __init__(self, config: ElectraConfig) -> None:
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
        super().__init__(config, ElectraEmbeddings(config), layers)
        self.init_weights()


class ElectraClassifier(PooledHead):
    """Dropout, dense, GELU, dropout and a linear map on the first token."""

    def __init__(self, backbone: ElectraModel, labels: int, dropout: float | None = None) -> None:
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self.dropout = Dropout(config.hidden_dropout if dropout is None else dropout)
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.classifier = Linear(config.hidden_size, labels)
        backbone.init_weights(self.dense)
        backbone.init_weights(self.classifier)

    @override
    def read(self, batch: PackedBatch) -> Tensor:
        first: Tensor = self.backbone(batch, select=batch.first).last_hidden_state
        return first

    @override
    def answer(self, pooled: Tensor) -> Tensor:
        dense = F.gelu(self.dense(self.dropout(pooled)))
        logits: Tensor = self.classifier(self.dropout(dense))
        return logits


_CLASSIFIER = rules(("classifier", "classifier"))
_ENCODER = "encoder.layer.{i}"

FAMILY = Family(
    model_type="electra",
    prefix="electra.",
    backbone=ElectraModel,
    rules=rules(
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.segments.weight", "embeddings.token_type_embeddings.weight"),
        ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        ("embeddings.project", "embeddings_project"),
        (
            "layers.{i}.attention.qkv",
            tuple(f"{_ENCODER}.attention.self.{part}" for part in ("query", "key", "value")),
        ),
        ("layers.{i}.attention.output", f"{_ENCODER}.attention.output.dense"),
        ("layers.{i}.attention_norm", f"{_ENCODER}.attention.output.LayerNorm"),
        ("layers.{i}.feed_forward.up", f"{_ENCODER}.intermediate.dense"),
        ("layers.{i}.feed_forward.down", f"{_ENCODER}.output.dense"),
        ("layers.{i}.feed_forward_norm", f"{_ENCODER}.output.LayerNorm"),
    ),
    heads={
        "backbone": HeadLayout("ElectraModel"),
        "sequence_classification": HeadLayout(
            "ElectraForSequenceClassification",
            ElectraClassifier,
            rules(("dense", "classifier.dense"), ("classifier", "classifier.out_proj")),
        ),
        "token_classification_crf": HeadLayout(
            "ElectraForTokenClassification", CrfTagger, (*_CLASSIFIER, *CRF_RULES)
        ),
        "token_classification": HeadLayout(
            "ElectraForTokenClassification", TokenClassifier, _CLASSIFIER
        ),
        "question_answering": HeadLayout(
            "ElectraForQuestionAnswering",
            lambda backbone, labels: TokenClassifier(backbone, 2, 0.0),
            rules(("classifier", "qa_outputs")),
        ),
    },
    ignored=("embeddings.position_ids",),
    # Clark et al. 2020, table 6.
    presets={
        f"electra-{name}": {
            "num_hidden_layers": layers,
            "embedding_size": embedding,
            "hidden_size": hidden,
            "num_attention_heads": hidden // 64,
            "intermediate_size": 4 * hidden,
        }
        for name, layers, embedding, hidden in (
            ("small", 12, 128, 256),
            ("base", 12, 768, 768),
            ("large", 24, 1024, 1024),
        )
    },
    tokenizer="minilm",
)
