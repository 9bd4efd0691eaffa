"""RoBERTa (Liu et al. 2019, arXiv:1907.11692), and what has its layers: XLM-R and CamemBERT.

It is BERT without next sentences, with two particulars. Positions count from the number of the
padding token + 1, as fairseq's did, so that the table of positions has rows that no text uses. And
mostly there is only one segment: pairs of texts are `<s> a </s></s> b </s>`.

XLM-R is Conneau et al. 2020 (arXiv:1911.02116), CamemBERT is Martin et al. 2020 (arXiv:1911.03894).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.bert import (
    ENCODER_IGNORED,
    ENCODER_RULES,
    BertClassifier,
    BertEmbeddings,
    HeadDropoutConfig,
    PooledEncoder,
)
from pretune.models.config import MAX_SIZES
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import MaskedLM
from pretune.models.heads.pooled import DenseClassifier
from pretune.models.heads.token import token_heads


@dataclass(frozen=True)
class RobertaConfig(HeadDropoutConfig):
    """The sizes of a RoBERTa, under the names of `config.json`; defaults as in transformers.

    `max_position_embeddings` counts the rows of the table of positions; a text has fewer tokens,
    which is what `size` says.
    """

    model_type: ClassVar[str] = "roberta"
    counts_from_pad: ClassVar[bool] = True

    vocab_size: int = 50265
    pad_token_id: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("pad_token_id", int, 0, MAX_SIZES["vocab_size"])
        if self.size("max_position_embeddings") < 1:
            raise CheckpointError(
                f"config: max_position_embeddings {self.max_position_embeddings} leaves no "
                f"position: the first {self.pad_token_id + 1} are not used (pad_token_id "
                f"{self.pad_token_id})"
            )

    @override
    def size(self, name: str) -> int:
        size = super().size(name)
        return size - self.pad_token_id - 1 if name == "max_position_embeddings" else size


@dataclass(frozen=True)
class XlmRobertaConfig(RobertaConfig):
    """The sizes of an XLM-R."""

    model_type: ClassVar[str] = "xlm-roberta"

    vocab_size: int = 30522


@dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """The sizes of a CamemBERT."""

    model_type: ClassVar[str] = "camembert"

    vocab_size: int = 30522


class RobertaEmbeddings(BertEmbeddings):
    """BERT's embeddings with RoBERTa's positions."""

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config, config.hidden_size)
        self.pad = config.pad_token_id

    @override
    def places(self, batch: PackedBatch) -> Tensor:
        return batch.positions_after(self.pad)


class RobertaModel(PooledEncoder):
    """RoBERTa's encoder."""

    config_class = RobertaConfig
    config: RobertaConfig
    embeddings: RobertaEmbeddings

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config, RobertaEmbeddings(config), config.layers())

    @override
    @torch.no_grad()
    def renumber_padding(self, number: int) -> None:
        # The positions that texts have move with the number, and their rows with them.
        table, moved = self.embeddings.positions, self.config.pad_token_id - number
        assert table is not None  # noqa: S101 - for mypy: sinusoids are not RoBERTa's
        table.weight = nn.Parameter(
            table.weight[moved:].clone(), requires_grad=table.weight.requires_grad
        )
        table.num_embeddings -= moved
        self.embeddings.pad = number
        rows = self.config.max_position_embeddings - moved
        self.config = replace(self.config, pad_token_id=number, max_position_embeddings=rows)


class XlmRobertaModel(RobertaModel):
    """XLM-R's encoder."""

    config_class = XlmRobertaConfig


class CamembertModel(RobertaModel):
    """CamemBERT's encoder."""

    config_class = CamembertConfig


def _classifier(
    backbone: RobertaModel, labels: int, dropout: float | None = None
) -> DenseClassifier:
    return DenseClassifier(backbone, labels, dropout, activation="tanh")


def _choice(backbone: RobertaModel, labels: int, dropout: float | None = None) -> BertClassifier:
    # transformers' class does not look at `classifier_dropout`.
    own = backbone.config.hidden_dropout_prob if dropout is None else dropout
    return BertClassifier(backbone, 1, own)


def _masked_lm(backbone: RobertaModel, labels: int) -> MaskedLM:
    backbone.drop_pooler()
    return MaskedLM(backbone, "gelu", backbone.config.layer_norm_eps)


def _heads(name: str) -> dict[str, HeadLayout]:
    """The heads, under transformers' names that begin with `name`."""
    return {
        "backbone": HeadLayout(f"{name}Model"),
        "sequence_classification": HeadLayout(
            f"{name}ForSequenceClassification",
            _classifier,
            rules(("dense", "classifier.dense"), ("classifier", "classifier.out_proj")),
        ),
        "multiple_choice": HeadLayout(
            f"{name}ForMultipleChoice",
            _choice,
            rules(("classifier", "classifier")),
            pooled="classifier",
        ),
        **token_heads(name),
        "masked_lm": HeadLayout(
            f"{name}ForMaskedLM",
            _masked_lm,
            rules(
                ("transform", "lm_head.dense"),
                ("norm", "lm_head.layer_norm"),
                ("bias", "lm_head.bias"),
            ),
            {
                "lm_head.decoder.weight": "embeddings.tokens.weight",
                "lm_head.decoder.bias": "bias",
            },
        ),
    }


def _presets(name: str, vocabulary: int) -> dict[str, dict[str, int | float]]:
    """The published sizes, base and large, of a family with its own vocabulary."""
    return {
        f"{name}-{size}": {
            "vocab_size": vocabulary,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": hidden // 64,
            "intermediate_size": 4 * hidden,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        }
        for size, layers, hidden in (("base", 12, 768), ("large", 24, 1024))
    }


FAMILY = Family(
    model_type="roberta",
    prefix="roberta.",
    backbone=RobertaModel,
    rules=(*ENCODER_RULES, *rules(("pooler", "pooler.dense"))),
    heads=_heads("Roberta"),
    ignored=ENCODER_IGNORED,
    optional=("pooler",),
    presets=_presets("roberta", 50265),
)
XLM_ROBERTA = replace(
    FAMILY,
    model_type="xlm-roberta",
    backbone=XlmRobertaModel,
    heads=_heads("XLMRoberta"),
    presets=_presets("xlm-roberta", 250002),
)
CAMEMBERT = replace(
    FAMILY,
    model_type="camembert",
    backbone=CamembertModel,
    heads=_heads("Camembert"),
    presets=_presets("camembert", 32005),
)
