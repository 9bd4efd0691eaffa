"""BERT (Devlin et al. 2019, arXiv:1810.04805), without padding.

Embeddings of token, segment and position are added; L post-norm Transformer layers follow; a pooler
(dense + tanh over the first token's last hidden state) gives one vector for the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from pretune.models.heads.pooled import PooledHead, choosing
from pretune.models.heads.token import token_heads
from pretune.models.layers import Dropout, Embedding, Linear, PostNormLayer, sinusoidal_positions

#: Values of `position_embedding_type` in config.json; transformers calls learned ones "absolute".
POSITION_TYPES = ("absolute", "sinusoidal")


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """The sizes that BERT and its relatives have, under the names of `config.json`."""

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

    def __post_init__(self) -> None:
        self.check_common()
        self.check("pad_token_id", int, -1, MAX_SIZES["vocab_size"])

    def layers(self) -> list[PostNormLayer]:
        """Make the layers, with fresh weights."""
        return [self.layer() for _ in range(self.num_hidden_layers)]

    def layer(self) -> PostNormLayer:
        """Make a layer, with fresh weights."""
        return PostNormLayer(
            *(self.hidden_size, self.num_attention_heads, self.intermediate_size),
            self.hidden_act,
            dropout=self.hidden_dropout_prob,
            attention_dropout=self.attention_probs_dropout_prob,
            eps=self.layer_norm_eps,
        )


@dataclass(frozen=True)
class HeadDropoutConfig(EncoderConfig):
    """The sizes of an encoder whose heads may have a dropout of their own.

    Attributes:
        classifier_dropout: of the heads; default: `hidden_dropout_prob`.
    """

    classifier_dropout: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier_dropout is not None:
            self.check("classifier_dropout", float, 0, 1)

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        # transformers' classes can be configured to these, but no model was published as such.
        for name, usual in (("is_decoder", False), ("position_embedding_type", "absolute")):
            if values.get(name) not in (None, usual):
                raise CheckpointError(
                    f"config: {name} is not '{usual}'",
                    "Only encoders with a table of positions are supported, as they are published.",
                )
        return super().from_dict(values)

    @property
    @override
    def hidden_dropout(self) -> float:
        own = self.classifier_dropout
        return self.hidden_dropout_prob if own is None else own


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The sizes of a BERT; the defaults are BERT-base's."""

    model_type: ClassVar[str] = "bert"

    position_embedding_type: str = "absolute"

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def __init__(self, config: EncoderConfig, size: int, *, sinusoidal: bool = False) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, size)
        self.segments = Embedding(config.type_vocab_size, size)
        self.positions: Embedding | None = None
        if sinusoidal:
            table = sinusoidal_positions(config.max_position_embeddings, size)
            self.register_buffer("sinusoids", table, persistent=False)
        else:
            self.positions = Embedding(config.max_position_embeddings, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded: Tensor = self.dropout(self.norm(self.summed(batch)))
        return embedded

    def summed(self, batch: PackedBatch) -> Tensor:
        """Add up what is known of each token, `[T, size]`."""
        x, places, table = self.tokens(batch.tokens), self.places(batch), self.positions
        x = x + (self.get_buffer("sinusoids")[places] if table is None else table(places))
        first = self.segments.weight[0]
        summed: Tensor = x + (first if batch.segments is None else self.segments(batch.segments))
        return summed

    def places(self, batch: PackedBatch) -> Tensor:
        """The row of each token in the table of positions, `[T]`."""
        return batch.positions


class PooledEncoder(Backbone):
    """An encoder with BERT's pooler: packed batch in, hidden states and pooled output out."""

    config: EncoderConfig

    def __init__(
        self,
        config: EncoderConfig,
        embeddings: Embeddings,
        layers: Sequence[nn.Module],
        *,
        pooler: bool = True,
    ) -> None:
        super().__init__(config, embeddings, layers)
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


class BertModel(PooledEncoder):
    """BERT's encoder."""

    config_class = BertConfig
    config: BertConfig

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
        layers = config.layers()
        sinusoidal = config.position_embedding_type == "sinusoidal"
        embeddings = BertEmbeddings(config, config.hidden_size, sinusoidal=sinusoidal)
        super().__init__(config, embeddings, layers, pooler=pooler)


class BertClassifier(PooledHead):
    """Dropout and a linear map on the pooled output (section 4.1).

    Raises:
        ValueError: the backbone has no pooler.
    """

    backbone: PooledEncoder

    def __init__(self, backbone: PooledEncoder, labels: int, dropout: float | None = None) -> None:
        super().__init__()
        if backbone.pooler is None:
            raise ValueError("a sequence classifier reads the pooled output: pooler=True")
        config = backbone.config
        self.backbone = backbone
        self.dropout = Dropout(config.hidden_dropout if dropout is None else dropout)
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
    """BERT's two pre-training heads: masked tokens and next sentence (section 3.1).

    Args:
        backbone: with a pooler.
        dropout: of the pooled output; BERT has none.
    """

    backbone: PooledEncoder

    def __init__(self, backbone: PooledEncoder, dropout: float = 0.0) -> None:
        super().__init__(backbone, backbone.config.hidden_act, backbone.config.layer_norm_eps)
        self.dropout = Dropout(dropout)
        self.relationship = Linear(backbone.config.hidden_size, 2)
        backbone.init_weights(self.relationship)

    @override
    def forward(
        self,
        batch: PackedBatch,
        *,
        both: bool = False,
        select: Selection | None = None,
        **scoring: Any,
    ) -> Any:
        """Run the masked-token head alone, or both heads on one pass.

        Args:
            batch: texts, or for `both` pairs of texts.
            both: run both heads.
            select: the tokens to predict, none of them the first of its sequence; default: all.
            scoring: `labels`, `smoothing` and `z_loss`, as for `MaskedLM`.

        Returns:
            what `MaskedLM` returns, or for `both` a `PreTrainingOutput`.
        """
        if not both:
            return super().forward(batch, select=select, **scoring)
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
        predictions = self.decode(hidden, **scoring)
        return PreTrainingOutput(predictions, self.relationship(self.dropout(pooled)))


def bert_masked_lm(backbone: PooledEncoder, labels: int) -> MaskedLM:
    """Put BERT's head for masked tokens on an encoder, which loses its pooler."""
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

_LAYER = "encoder.layer.{i}"
#: Names of the embeddings and the layers.
ENCODER_RULES = rules(
    ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
    ("embeddings.segments.weight", "embeddings.token_type_embeddings.weight"),
    ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
    ("embeddings.norm", "embeddings.LayerNorm"),
    (
        "layers.{i}.attention.qkv",
        tuple(f"{_LAYER}.attention.self.{part}" for part in ("query", "key", "value")),
    ),
    ("layers.{i}.attention.output", f"{_LAYER}.attention.output.dense"),
    ("layers.{i}.attention_norm", f"{_LAYER}.attention.output.LayerNorm"),
    ("layers.{i}.feed_forward.up", f"{_LAYER}.intermediate.dense"),
    ("layers.{i}.feed_forward.down", f"{_LAYER}.output.dense"),
    ("layers.{i}.feed_forward_norm", f"{_LAYER}.output.LayerNorm"),
)


def bert_heads(name: str) -> dict[str, HeadLayout]:
    """The heads of a BERT, under transformers' names that begin with `name`."""
    return {
        "backbone": HeadLayout(f"{name}Model"),
        "sequence_classification": HeadLayout(
            f"{name}ForSequenceClassification", BertClassifier, _CLASSIFIER, pooled="classifier"
        ),
        "multiple_choice": HeadLayout(
            f"{name}ForMultipleChoice", choosing(BertClassifier), _CLASSIFIER, pooled="classifier"
        ),
        **token_heads(name),
        "masked_lm": HeadLayout(f"{name}ForMaskedLM", bert_masked_lm, _MASKED_LM, _TIED),
        "pretraining": HeadLayout(
            f"{name}ForPreTraining",
            lambda backbone, labels: BertPreTraining(backbone),
            (*_MASKED_LM, *rules(("relationship", "cls.seq_relationship"))),
            _TIED,
            pooled="relationship",
        ),
    }


#: Names in published files that carry nothing.
ENCODER_IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids")

FAMILY = Family(
    model_type="bert",
    prefix="bert.",
    backbone=BertModel,
    rules=(*ENCODER_RULES, *rules(("pooler", "pooler.dense"))),
    heads=bert_heads("Bert"),
    ignored=(*ENCODER_IGNORED, "embeddings.sinusoids"),
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
