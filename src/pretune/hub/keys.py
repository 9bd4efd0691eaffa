"""What the parameters are called here and in the published layout: data, used in both directions.

A rule pairs one of our names with theirs; several of theirs are concatenated along the first
dimension (query, key and value share one matrix here). `{i}` stands for a layer's number, and a
name without `.weight` or `.bias` means both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pretune.models import BertConfig, BertModel

Rule = tuple[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Head:
    """A kind of model: the class transformers has for it, and the names of what the head adds."""

    architecture: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Family:
    """How a published model family maps to ours.

    Attributes:
        model_type: as `config.json` names it.
        prefix: what stands before the backbone's names in a model with a head.
        backbone: our class; its `config_class` reads `config.json`.
        rules: names of the backbone.
        heads: by our name of the head; "backbone" is the model without one.
        ignored: names in published files that carry nothing to load.
        optional: our names that may be missing from a file (they are then initialised, and said).
    """

    model_type: str
    prefix: str
    backbone: type[BertModel]
    rules: tuple[Rule, ...]
    heads: Mapping[str, Head]
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def head_names(self, head: str) -> tuple[str, ...]:
        """Our parameter names of a head."""
        return tuple(expand(self.heads[head].rules, 1))

    @property
    def config_class(self) -> type[BertConfig]:
        """The configuration class of the backbone."""
        return self.backbone.config_class


BERT = Family(
    model_type="bert",
    prefix="bert.",
    backbone=BertModel,
    rules=(
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
        "backbone": Head("BertModel"),
        "sequence_classification": Head(
            "BertForSequenceClassification", (("classifier", "classifier"),)
        ),
    },
    ignored=("embeddings.position_ids", "embeddings.sinusoids"),
    optional=("pooler",),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in (BERT,)}


def expand(rules: tuple[Rule, ...], layers: int) -> dict[str, tuple[str, ...]]:
    """Full parameter names: ours -> theirs, for a model of `layers` layers."""
    table: dict[str, tuple[str, ...]] = {}
    for ours, theirs in rules:
        parts = (theirs,) if isinstance(theirs, str) else theirs
        for i in range(layers) if "{i}" in ours else (0,):
            for kind in ("",) if ours.endswith((".weight", ".bias")) else (".weight", ".bias"):
                table[ours.format(i=i) + kind] = tuple(part.format(i=i) + kind for part in parts)
    return table


def name_table(family: Family, head: str, layers: int) -> dict[str, tuple[str, ...]]:
    """Every parameter of a model with this head: our full name -> theirs.

    Our models with a head hold their backbone as `backbone`.
    """
    inner = expand(family.rules, layers)
    if head == "backbone":
        return inner
    table = {
        f"backbone.{ours}": tuple(family.prefix + name for name in theirs)
        for ours, theirs in inner.items()
    }
    return table | expand(family.heads[head].rules, layers)
