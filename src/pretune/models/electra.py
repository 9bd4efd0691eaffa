"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): an encoder trained to tell replaced tokens apart.

It has BERT's layers. Its embeddings may be narrower than its hidden states, and then a linear map
leads from one to the other (section 3.2); there is no pooler. The discriminator is the part that is
fine-tuned. The generator, which replaces tokens in its pre-training, is a smaller model of the same
family with a head for masked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone
from pretune.models.bert import ENCODER_IGNORED, ENCODER_RULES, BertEmbeddings, HeadDropoutConfig
from pretune.models.config import MAX_SIZES
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import MaskedLM
from pretune.models.heads.pooled import DenseClassifier
from pretune.models.heads.replaced import Detector
from pretune.models.heads.token import token_heads
from pretune.models.layers import ACTIVATIONS, Linear


@dataclass(frozen=True)
class ElectraConfig(HeadDropoutConfig):
    """The sizes of an ELECTRA, under the names of `config.json`; the defaults are ELECTRA-Small's.

    Attributes:
        embedding_size: the width of the embeddings.
        summary_type: what the head for multiple choice reads: `first`, the first token.
        summary_use_proj: whether it has a dense map.
        summary_activation: the activation after that map.
        summary_last_dropout: its dropout.
    """

    model_type: ClassVar[str] = "electra"

    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str = "gelu"
    summary_last_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("embedding_size", int, 1, MAX_SIZES["hidden_size"])
        self.check("summary_last_dropout", float, 0, 1)


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


class ReplacedTokens(Detector):
    """Tells for each token whether it was replaced (section 3.1): dense, activation, linear."""

    def __init__(self, backbone: ElectraModel) -> None:
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.replaced = Linear(config.hidden_size, 1)
        backbone.init_weights(self.dense)
        backbone.init_weights(self.replaced)

    @override
    def judge(self, batch: PackedBatch) -> Tensor:
        hidden = self.backbone(batch).last_hidden_state
        logits: Tensor = self.replaced(self.activation(self.dense(hidden)))
        return logits.squeeze(-1)


def _classifier(
    backbone: ElectraModel, labels: int, dropout: float | None = None
) -> DenseClassifier:
    return DenseClassifier(backbone, labels, dropout, activation="gelu")


def _choice(backbone: ElectraModel, labels: int, dropout: float | None = None) -> DenseClassifier:
    config = backbone.config
    # transformers' class can be configured to these, but no ELECTRA was published as such.
    usual = {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}
    for name, value in usual.items():
        if getattr(config, name) != value:
            raise CheckpointError(
                f"config: {name} is not {value!r}", "Only ELECTRA as published is supported."
            )
    own = config.summary_last_dropout if dropout is None else dropout
    return DenseClassifier(backbone, 1, own, activation="gelu", first_dropout=0.0)


FAMILY = Family(
    model_type="electra",
    prefix="electra.",
    backbone=ElectraModel,
    rules=(*ENCODER_RULES, *rules(("embeddings.project", "embeddings_project"))),
    heads={
        "backbone": HeadLayout("ElectraModel"),
        "sequence_classification": HeadLayout(
            "ElectraForSequenceClassification",
            _classifier,
            rules(("dense", "classifier.dense"), ("classifier", "classifier.out_proj")),
        ),
        "multiple_choice": HeadLayout(
            "ElectraForMultipleChoice",
            _choice,
            rules(("dense", "sequence_summary.summary"), ("classifier", "classifier")),
        ),
        **token_heads("Electra"),
        "masked_lm": HeadLayout(
            "ElectraForMaskedLM",
            lambda backbone, labels: MaskedLM(backbone, "gelu", backbone.config.layer_norm_eps),
            rules(
                ("transform", "generator_predictions.dense"),
                ("norm", "generator_predictions.LayerNorm"),
                ("bias", "generator_lm_head.bias"),
            ),
            {"generator_lm_head.weight": "embeddings.tokens.weight"},
        ),
        "replaced_tokens": HeadLayout(
            "ElectraForPreTraining",
            lambda backbone, labels: ReplacedTokens(backbone),
            rules(
                ("dense", "discriminator_predictions.dense"),
                ("replaced", "discriminator_predictions.dense_prediction"),
            ),
        ),
    },
    ignored=ENCODER_IGNORED,
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
