"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's layers, no segments and no pooler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import MAX_SIZES, ModelConfig
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import MaskedLM
from pretune.models.heads.pooled import PooledHead, choosing
from pretune.models.heads.token import token_heads
from pretune.models.layers import Dropout, Embedding, Linear, PostNormLayer, sinusoidal_positions

#: Of every LayerNorm. transformers has it in its code rather than in `config.json`.
LAYER_NORM_EPS = 1e-12


@dataclass(frozen=True)
class DistilBertConfig(ModelConfig):
    """The sizes of a DistilBERT, under the names of `config.json`; defaults as published."""

    model_type: ClassVar[str] = "distilbert"
    names: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    }
    aliases: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    }
    dropout_names: ClassVar[tuple[str, ...]] = ("dropout",)
    attention_dropout_name: ClassVar[str] = "attention_dropout"
    activation_name: ClassVar[str] = "activation"

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        self.check_common()
        for name in ("qa_dropout", "seq_classif_dropout"):
            self.check(name, float, 0, 1)
        self.check("pad_token_id", int, -1, MAX_SIZES["vocab_size"])
        if self.sinusoidal_pos_embds:
            self.check_sinusoids()


class DistilBertEmbeddings(Embeddings):
    """LayerNorm(token + position), then dropout.

    Positions are parameters, also with `sinusoidal_pos_embds`, which only says how they start.
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.dim)
        self.positions = Embedding(config.max_position_embeddings, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(config.dropout)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.tokens(batch.tokens) + self.positions(batch.positions)
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded


class DistilBertModel(Backbone):
    """The encoder: packed batch in, hidden states out."""

    config_class = DistilBertConfig
    config: DistilBertConfig

    def __init__(self, config: DistilBertConfig) -> None:
        layers = [
            PostNormLayer(
                *(config.dim, config.n_heads, config.hidden_dim, config.activation),
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                eps=LAYER_NORM_EPS,
                # transformers' DistilBERT has no dropout on the attention's output.
                dropout_attended=0.0,
            )
            for _ in range(config.n_layers)
        ]
        super().__init__(config, DistilBertEmbeddings(config), layers)
        self.init_weights()

    @override
    def init_weights(self, module: nn.Module | None = None) -> None:
        super().init_weights(module)
        positions = self.embeddings.get_submodule("positions").get_parameter("weight")
        if self.config.sinusoidal_pos_embds and not positions.is_meta and module is None:
            table = sinusoidal_positions(*positions.shape)
            positions.data.copy_(table)


class DistilBertClassifier(PooledHead):
    """Dense, ReLU, dropout and a linear map on the first token."""

    def __init__(
        self, backbone: DistilBertModel, labels: int, dropout: float | None = None
    ) -> None:
        super().__init__()
        config = backbone.config
        self.backbone = backbone
        self.dense = Linear(config.dim, config.dim)
        self.dropout = Dropout(config.seq_classif_dropout if dropout is None else dropout)
        self.classifier = Linear(config.dim, labels)
        backbone.init_weights(self.dense)
        backbone.init_weights(self.classifier)

    @override
    def answer(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(F.relu(self.dense(pooled))))
        return logits


_DENSE_CLASSIFIER = rules(("dense", "pre_classifier"), ("classifier", "classifier"))
_LAYER = "transformer.layer.{i}"

FAMILY = Family(
    model_type="distilbert",
    prefix="distilbert.",
    backbone=DistilBertModel,
    rules=rules(
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        (
            "layers.{i}.attention.qkv",
            tuple(f"{_LAYER}.attention.{part}_lin" for part in "qkv"),
        ),
        ("layers.{i}.attention.output", f"{_LAYER}.attention.out_lin"),
        ("layers.{i}.attention_norm", f"{_LAYER}.sa_layer_norm"),
        ("layers.{i}.feed_forward.up", f"{_LAYER}.ffn.lin1"),
        ("layers.{i}.feed_forward.down", f"{_LAYER}.ffn.lin2"),
        ("layers.{i}.feed_forward_norm", f"{_LAYER}.output_layer_norm"),
    ),
    heads={
        "backbone": HeadLayout("DistilBertModel"),
        "sequence_classification": HeadLayout(
            "DistilBertForSequenceClassification", DistilBertClassifier, _DENSE_CLASSIFIER
        ),
        "multiple_choice": HeadLayout(
            "DistilBertForMultipleChoice", choosing(DistilBertClassifier), _DENSE_CLASSIFIER
        ),
        **token_heads("DistilBert", lambda config: float(config.qa_dropout)),
        "masked_lm": HeadLayout(
            "DistilBertForMaskedLM",
            lambda backbone, labels: MaskedLM(backbone, backbone.config.activation, LAYER_NORM_EPS),
            rules(
                ("transform", "vocab_transform"),
                ("norm", "vocab_layer_norm"),
                ("bias", "vocab_projector.bias"),
            ),
            {"vocab_projector.weight": "embeddings.tokens.weight"},
        ),
    },
    presets={"distilbert-base": {}},
    tokenizer="minilm",
)
