"""BERT (Devlin et al. 2019, arXiv:1810.04805), without padding.

Embeddings of token, segment and position are added; L post-norm Transformer layers follow; a pooler
(dense + tanh over the first token's last hidden state) gives one vector for the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import MAX_SIZES, ModelConfig, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import MaskedLM, PreTrainingOutput
from pretune.models.heads.pooled import PooledHead
from pretune.models.heads.token import CRF_RULES, CrfTagger, TokenClassifier
from pretune.models.layers import Dropout, Embedding, Linear, PostNormLayer, sinusoidal_positions

#: Values of `position_embedding_type` in config.json; transformers calls learned ones "absolute".
POSITION_TYPES = ("absolute", "sinusoidal")


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    """The sizes of a BERT, under the names of `config.json`; the defaults are BERT-base's."""

    model_type: ClassVar[str] = "bert"
    dropout_names: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob",)
    attention_dropout_name: ClassVar[str] = "attention_probs_dropout_prob"
    activation_name: ClassVar[str] = "hidden_act"
    eps_name: ClassVar[str] = "layer_norm_eps"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"

    def __post_init__(self) -> None:
        self.check_common()
        self.check("pad_token_id", int, -1, MAX_SIZES["vocab_size"])
        if self.position_embedding_type not in POSITION_TYPES:
            raise CheckpointError(
                "config: position_embedding_type "
                f"'{brief(self.position_embedding_type)}' is unknown here",
                f"Supported: {', '.join(POSITION_TYPES)}.",
            )
        if self.position_embedding_type == "sinusoidal":
            self.check_sinusoids()

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        if values.get("is_decoder"):
            raise CheckpointError(
                "config: is_decoder is set: every token of this model sees only those before it",
                "Only encoders are supported.",
            )
        return super().from_dict(values)

    @override
    def to_dict(self) -> dict[str, Any]:
        # With sinusoids it gets a model_type of its own: transformers would make up positions.
        sinusoidal = self.position_embedding_type == "sinusoidal"
        kind = {"model_type": "bert-sinusoidal"} if sinusoidal else {}
        return {**super().to_dict(), **kind}


class BertEmbeddings(Embeddings):
    """LayerNorm(token + position + segment), then dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.tokens = Embedding(config.vocab_size, size)
        self.segments = Embedding(config.type_vocab_size, size)
        self.positions: Embedding | None = None
        if config.position_embedding_type == "absolute":
            self.positions = Embedding(config.max_position_embeddings, size)
        else:
            table = sinusoidal_positions(config.max_position_embeddings, size)
            self.register_buffer("sinusoids", table, persistent=False)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.tokens(batch.tokens)
        if self.positions is not None:
            x = x + self.positions(batch.positions)
        else:
            x = x + self.get_buffer("sinusoids")[batch.positions]
        if batch.segments is not None:
            x = x + self.segments(batch.segments)
        else:
            x = x + self.segments.weight[0]
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded


class BertModel(Backbone):
    """The encoder: packed batch in, hidden states and pooled output out."""

    config_class = BertConfig
    config: BertConfig

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
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
        super().__init__(config, BertEmbeddings(config), layers)
        self.pooler = Linear(config.hidden_size, config.hidden_size) if pooler else None
        self.init_weights()

    @override
    def drop_pooler(self) -> None:
        self.pooler = None

    @override
    def pool(self, x: Tensor, batch: PackedBatch, select: Selection | None) -> Tensor | None:
        # tanh(dense(the first token)), unless `select` left the first tokens out.
        if self.pooler is None or (select is not None and select is not batch.first):
            return None
        first = x if select is not None else x[batch.first.rows]
        return torch.tanh(self.pooler(first))


class BertClassifier(PooledHead):
    """Dropout and a linear map on the pooled output (section 4.1).

    Raises:
        ValueError: the backbone has no pooler.
    """

    backbone: BertModel

    def __init__(self, backbone: BertModel, labels: int, dropout: float | None = None) -> None:
        super().__init__()
        if backbone.pooler is None:
            raise ValueError("a sequence classifier reads the pooled output: pooler=True")
        config = backbone.config
        self.backbone = backbone
        self.dropout = Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = Linear(config.hidden_size, labels)
        backbone.init_weights(self.classifier)

    @override
    def read(self, batch: PackedBatch) -> Tensor:
        pooled: Tensor = self.backbone(batch, select=batch.first).pooler_output
        return pooled

    @override
    def answer(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class BertPreTraining(MaskedLM):
    """BERT's two pre-training heads: masked tokens and next sentence (section 3.1)."""

    backbone: BertModel

    def __init__(self, backbone: BertModel) -> None:
        super().__init__(backbone, backbone.config.hidden_act, backbone.config.layer_norm_eps)
        self.relationship = Linear(backbone.config.hidden_size, 2)
        backbone.init_weights(self.relationship)

    @override
    def forward(
        self,
        batch: PackedBatch,
        *,
        both: bool = False,
        select: Selection | None = None,
        labels: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Any:
        """Run the masked-token head alone, or both heads on one pass.

        Args:
            batch: texts, or for `both` pairs of texts.
            both: run both heads.
            select: the tokens to predict, none of them the first of its sequence; default: all.
            labels: as for `MaskedLM`.
            smoothing: as for `MaskedLM`.
            z_loss: as for `MaskedLM`.

        Returns:
            what `MaskedLM` returns, or for `both` a `PreTrainingOutput`.
        """
        if not both:
            return super().forward(
                batch, select=select, labels=labels, smoothing=smoothing, z_loss=z_loss
            )
        if select is None:
            output = self.backbone(batch)
            hidden, pooled = output.last_hidden_state, output.pooler_output
        else:
            # One selection for the last layer: the first tokens, which the pooler reads, together
            # with the tokens to predict, in the order of the batch.
            rows, order = torch.cat([batch.first.rows, select.rows]).sort()
            layout = Layout.of([1 + count for count in select.layout.lengths], rows.device)
            selected = self.backbone(batch, select=Selection(rows, layout)).last_hidden_state
            # Then split them again. Unlike a boolean mask, indices do not wait for the device.
            places = order.argsort()
            first, others = places[: batch.num_sequences], places[batch.num_sequences :]
            hidden = selected[others]
            pooled = self.backbone.pool(selected[first], batch, batch.first)
        predictions = self.decode(hidden, labels, smoothing, z_loss)
        return PreTrainingOutput(predictions, self.relationship(pooled))


def _chooser(backbone: BertModel, labels: int, dropout: float | None = None) -> BertClassifier:
    return BertClassifier(backbone, 1, dropout)


def _masked_lm(backbone: BertModel, labels: int) -> MaskedLM:
    backbone.drop_pooler()
    return MaskedLM(backbone, backbone.config.hidden_act, backbone.config.layer_norm_eps)


_CLASSIFIER = rules(("classifier", "classifier"))
_MASKED_LM = rules(
    ("transform", "cls.predictions.transform.dense"),
    ("norm", "cls.predictions.transform.LayerNorm"),
    ("bias", "cls.predictions.bias"),
)
_TIED = {
    "cls.predictions.decoder.weight": "embeddings.tokens.weight",
    "cls.predictions.decoder.bias": "bias",
}

FAMILY = Family(
    model_type="bert",
    prefix="bert.",
    backbone=BertModel,
    rules=rules(
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.segments.weight", "embeddings.token_type_embeddings.weight"),
        ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        (
            "layers.{i}.attention.qkv",
            (
                "encoder.layer.{i}.attention.self.query",
                "encoder.layer.{i}.attention.self.key",
                "encoder.layer.{i}.attention.self.value",
            ),
        ),
        ("layers.{i}.attention.output", "encoder.layer.{i}.attention.output.dense"),
        ("layers.{i}.attention_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
        ("layers.{i}.feed_forward.up", "encoder.layer.{i}.intermediate.dense"),
        ("layers.{i}.feed_forward.down", "encoder.layer.{i}.output.dense"),
        ("layers.{i}.feed_forward_norm", "encoder.layer.{i}.output.LayerNorm"),
        ("pooler", "pooler.dense"),
    ),
    heads={
        "backbone": HeadLayout("BertModel"),
        "sequence_classification": HeadLayout(
            "BertForSequenceClassification", BertClassifier, _CLASSIFIER, pooled="classifier"
        ),
        "multiple_choice": HeadLayout(
            "BertForMultipleChoice", _chooser, _CLASSIFIER, pooled="classifier"
        ),
        "token_classification_crf": HeadLayout(
            "BertForTokenClassification", CrfTagger, (*_CLASSIFIER, *CRF_RULES)
        ),
        "token_classification": HeadLayout(
            "BertForTokenClassification", TokenClassifier, _CLASSIFIER
        ),
        "question_answering": HeadLayout(
            "BertForQuestionAnswering",
            lambda backbone, labels: TokenClassifier(backbone, 2, 0.0),
            rules(("classifier", "qa_outputs")),
        ),
        "masked_lm": HeadLayout("BertForMaskedLM", _masked_lm, _MASKED_LM, _TIED),
        "pretraining": HeadLayout(
            "BertForPreTraining",
            lambda backbone, labels: BertPreTraining(backbone),
            (*_MASKED_LM, *rules(("relationship", "cls.seq_relationship"))),
            _TIED,
            pooled="relationship",
        ),
    },
    ignored=("embeddings.position_ids", "embeddings.sinusoids"),
    optional=("pooler",),
    # The smaller sizes are those of Turc et al. 2019, table 1.
    presets={
        f"bert-{name}": {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": hidden // 64,
            "intermediate_size": 4 * hidden,
        }
        for name, layers, hidden in (
            ("tiny", 2, 128),
            ("mini", 4, 256),
            ("small", 4, 512),
            ("medium", 8, 512),
            ("base", 12, 768),
            ("large", 24, 1024),
        )
    },
    tokenizer="minilm",
)
#: With sinusoids for positions: transformers has no such model.
SINUSOIDAL = replace(FAMILY, model_type="bert-sinusoidal", published=False, presets={})
