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
from torch import Tensor
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone
from pretune.models.bert import ENCODER_RULES, BertEmbeddings, EncoderConfig
from pretune.models.config import MAX_SIZES
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.pooled import PooledHead
from pretune.models.heads.token import token_heads
from pretune.models.layers import Dropout, Linear


@dataclass(frozen=True)
class ElectraConfig(EncoderConfig):
    """The sizes of an ELECTRA, under the names of `config.json`; the defaults are ELECTRA-Small's.

    Attributes:
        embedding_size: the width of the embeddings.
        classifier_dropout: of the heads; default: `hidden_dropout_prob`.
    """

    model_type: ClassVar[str] = "electra"

    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("embedding_size", int, 1, MAX_SIZES["hidden_size"])
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


class ElectraEmbeddings(BertEmbeddings):
    """BERT's embeddings, then a linear map to the hidden size."""

    def __init__(self, config: ElectraConfig) -> None:
        size = config.embedding_size
        super().__init__(config, size)
        self.project = None if size == config.hidden_size else Linear(size, config.hidden_size)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded = super().forward(batch)
        return embedded if self.project is None else self.project(embedded)


class ElectraModel(Backbone):
    """The encoder: packed batch in, hidden states out."""

    config_class = ElectraConfig
    config: ElectraConfig

    def __init__(self, config: ElectraConfig) -> None:
        layers = config.layers()
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
    def answer(self, pooled: Tensor) -> Tensor:
        dense = F.gelu(self.dense(self.dropout(pooled)))
        logits: Tensor = self.classifier(self.dropout(dense))
        return logits


FAMILY = Family(
    model_type="electra",
    prefix="electra.",
    backbone=ElectraModel,
    rules=(*ENCODER_RULES, *rules(("embeddings.project", "embeddings_project"))),
    heads={
        "backbone": HeadLayout("ElectraModel"),
        "sequence_classification": HeadLayout(
            "ElectraForSequenceClassification",
            ElectraClassifier,
            rules(("dense", "classifier.dense"), ("classifier", "classifier.out_proj")),
        ),
        **token_heads("Electra"),
    },
    ignored=("embeddings.position_ids",),
    # Those of its pre-training, of multiple choice and of its generator.
    other_heads=(
        *("discriminator_predictions", "sequence_summary"),
        *("generator_predictions", "generator_lm_head"),
    ),
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
