"""DeBERTa-v2 and v3 (He et al. 2021, arXiv:2006.03654 and 2111.09543): disentangled attention.

What a token attends to depends on what the other token is, and apart from that on how far away it
is. With q, k of the contents and learned vectors r(i, j) of the distance from j to i (section 3.1,
equation 4):

    score(i, j) = (q_i . k_j + q_i . K r(i, j) + k_j . Q r(i, j)) / sqrt(3 d)

Version 2 puts distances into buckets that widen with the distance, and may use the same matrices
for contents and distances. There are mostly no other positions and no segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.attention import ScoreBias
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.bert import ENCODER_IGNORED, EncoderConfig, bert_masked_lm
from pretune.models.config import MAX_SIZES, brief
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.pooled import DenseClassifier
from pretune.models.heads.token import token_heads
from pretune.models.layers import (
    ACTIVATIONS,
    Dropout,
    Embedding,
    Linear,
    PostNormLayer,
    SelfAttention,
)

#: What distances may be compared with: "c2p" is q . K r, "p2c" is k . Q r.
KINDS = ("c2p", "p2c")


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """The sizes of a DeBERTa-v2, under the names of `config.json`; defaults as in transformers.

    Attributes:
        embedding_size: the width of the embeddings; default: `hidden_size`.
        relative_attention: whether scores depend on distances.
        pos_att_type: which of `KINDS` scores have.
        max_relative_positions: the largest distance; -1: `max_position_embeddings`.
        position_buckets: buckets in each direction; -1: a vector for each distance.
        norm_rel_ebd: `layer_norm` for a LayerNorm on the vectors of distances, else `none`.
        share_att_key: whether distances are mapped by the matrices of the contents.
        position_biased_input: whether embeddings of absolute positions are added.
        pooler_dropout: of the classifier's dense map.
        pooler_hidden_act: the activation after it.
        cls_dropout: of the classifier; default: `hidden_dropout_prob`.
        legacy: how the head for masked tokens is stored.
        conv_kernel_size: tokens that a convolution beside the first layer looks at, an odd number;
            0: there is none. Only v2 xlarge and xxlarge have it.
        conv_groups: groups of channels of the convolution.
        conv_act: the activation after it.
    """

    model_type: ClassVar[str] = "deberta-v2"
    smallest: ClassVar[Mapping[str, int]] = {"type_vocab_size": 0}

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    embedding_size: int | None = None
    relative_attention: bool = False
    pos_att_type: Sequence[str] = field(default_factory=list)
    max_relative_positions: int = -1
    position_buckets: int = -1
    norm_rel_ebd: str = "none"
    share_att_key: bool = False
    position_biased_input: bool = True
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None
    legacy: bool = True
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_size is not None:
            self.check("embedding_size", int, 1, MAX_SIZES["hidden_size"])
        for name in ("max_relative_positions", "position_buckets"):
            self.check(name, int, -(2**31), MAX_SIZES["max_position_embeddings"])
        for name in ("pooler_dropout", *(["cls_dropout"] if self.cls_dropout is not None else [])):
            self.check(name, float, 0, 1)
        for name in ("relative_attention", "share_att_key", "position_biased_input", "legacy"):
            if not isinstance(getattr(self, name), bool):
                raise CheckpointError(f"config: {name} must be true or false")
        self._check_names()
        self._check_convolution()
        if self.position_buckets == 1:
            raise CheckpointError("config: position_buckets is 1: no distance could be told apart")
        # How fast buckets widen is a logarithm of these two, by which is divided: it must not be 0.
        middle = self.position_buckets // 2
        if 0 < middle == self.span_limit - 1 < self.max_position_embeddings - 1:
            raise CheckpointError(
                f"config: max_relative_positions {self.max_relative_positions} leaves nothing for "
                f"the wider ones of the buckets: position_buckets is {self.position_buckets}",
                f"Its least value beside them is {middle + 2}.",
            )

    def _check_convolution(self) -> None:
        self.check("conv_kernel_size", int, 0, MAX_SIZES["max_position_embeddings"])
        self.check("conv_groups", int, 1, MAX_SIZES["hidden_size"])
        if not self.conv_kernel_size:
            return
        if self.conv_kernel_size % 2 == 0 or self.hidden_size % self.conv_groups:
            raise CheckpointError(
                f"config: conv_kernel_size {self.conv_kernel_size} must be odd, and conv_groups "
                f"{self.conv_groups} a divisor of hidden_size {self.hidden_size}"
            )
        if self.conv_act not in ACTIVATIONS:
            raise CheckpointError(
                f"config: the activation conv_act '{brief(self.conv_act)}' is unknown here",
                f"Known: {', '.join(ACTIVATIONS)}.",
            )

    @override
    def with_layers(self, kept: Sequence[int], **entries: Any) -> Self:
        if self.conv_kernel_size and kept[0] != 0:
            raise CheckpointError(
                "a convolution belongs to the first layer of this model (conv_kernel_size)",
                "Keep layer 0.",
            )
        return super().with_layers(kept, **entries)

    def _check_names(self) -> None:
        """Check the entries that are names."""
        kinds = self.pos_att_type
        if not isinstance(kinds, list | tuple) or not all(kind in KINDS for kind in kinds):
            raise CheckpointError(
                f"config: pos_att_type must list some of {', '.join(KINDS)}, not "
                f"{brief(repr(kinds))}"
            )
        if self.norm_rel_ebd not in ("none", "layer_norm"):
            raise CheckpointError(
                f"config: norm_rel_ebd is {brief(repr(self.norm_rel_ebd))}",
                "Known: none, layer_norm.",
            )
        if self.pooler_hidden_act not in ACTIVATIONS:
            raise CheckpointError(
                f"config: the activation pooler_hidden_act '{brief(self.pooler_hidden_act)}' is "
                "unknown here",
                f"Known: {', '.join(ACTIVATIONS)}.",
            )

    @override
    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        entries = dict(values)
        # Old files write "c2p|p2c", and "layer_norm" among others.
        kinds = entries.get("pos_att_type")
        if isinstance(kinds, str):
            entries["pos_att_type"] = [kind.strip() for kind in kinds.lower().split("|") if kind]
        norm = entries.get("norm_rel_ebd")
        if isinstance(norm, str):
            names = {name.strip() for name in norm.lower().split("|")}
            entries["norm_rel_ebd"] = "layer_norm" if "layer_norm" in names else "none"
        hidden, heads = (entries.get(n) for n in ("hidden_size", "num_attention_heads"))
        whole = isinstance(hidden, int) and isinstance(heads, int) and heads > 0
        usual = {"pooler_hidden_size": hidden}
        usual |= {"attention_head_size": hidden // heads} if whole else {}  # type: ignore[operator]
        for name, value in usual.items():
            if value is not None and entries.get(name) not in (None, value):
                raise CheckpointError(
                    f"config: {name} is {brief(repr(entries[name]))}, not {value}",
                    "Only DeBERTa as published is supported.",
                )
        return super().from_dict(entries)

    @override
    def to_dict(self) -> dict[str, Any]:
        # transformers takes the hidden size only where there is no such entry.
        entries = super().to_dict()
        unsaid = {"embedding_size"} if self.embedding_size is None else set()
        if not self.conv_kernel_size:
            unsaid |= {"conv_kernel_size", "conv_groups", "conv_act"}
        return {name: value for name, value in entries.items() if name not in unsaid}

    @property
    def span_limit(self) -> int:
        """The largest distance that is told apart, before buckets."""
        largest = self.max_relative_positions
        return self.max_position_embeddings if largest < 1 else largest

    @property
    def span(self) -> int:
        """Vectors in each direction."""
        return self.position_buckets if self.position_buckets > 0 else self.span_limit

    @property
    def embedding_width(self) -> int:
        """The width of the embeddings."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size


class DebertaEmbeddings(Embeddings):
    """LayerNorm of the token, with position and segment where the model has them; then dropout."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        size = config.embedding_width
        self.tokens = Embedding(config.vocab_size, size)
        self.positions: Embedding | None = None
        if config.position_biased_input:
            self.positions = Embedding(config.max_position_embeddings, size)
        self.segments: Embedding | None = None
        if config.type_vocab_size:
            self.segments = Embedding(config.type_vocab_size, size)
        self.project: Linear | None = None
        if size != config.hidden_size:
            self.project = Linear(size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.tokens(batch.tokens)
        if self.positions is not None:
            x = x + self.positions(batch.positions)
        if self.segments is not None:
            first = self.segments.weight[0]
            x = x + (first if batch.segments is None else self.segments(batch.segments))
        if self.project is not None:
            x = self.project(x)
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded


class RelativeVectors(nn.Module):
    """The vectors of distances, `[2 * span, hidden]`, which all layers share.

    Row `span` stands for distance 0; rows above it are for keys before the query.
    """

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.vectors = Embedding(2 * config.span, size)
        self.norm: nn.LayerNorm | None = None
        if config.norm_rel_ebd == "layer_norm":
            self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, rows: slice) -> Tensor:
        """Give some of the vectors, `[rows, hidden]`."""
        chosen = self.vectors.weight[rows]
        return self.dropout(chosen if self.norm is None else self.norm(chosen))  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def bucket_table(longest: int, buckets: int, largest: int) -> Tensor:
    """The bucket of each distance from 0 to `longest` - 1, `[longest]` int64.

    Distances up to half of the buckets have one each; the others share by their logarithm. In
    float32, as transformers computes it: at the edge of a bucket a digit decides.
    """
    distance = torch.arange(longest, device="cpu")
    if buckets <= 0:
        return distance
    middle = buckets // 2
    far = distance.clamp(min=middle - 1) / middle
    wide = torch.log(torch.tensor((largest - 1) / middle))
    logarithmic = torch.ceil(torch.log(far) / wide * (middle - 1)) + middle
    return torch.where(distance <= middle, distance, logarithmic.long())


class DisentangledAttention(SelfAttention):
    """Self-attention whose scores also depend on distances (section 3.1).

    Args:
        config: the sizes.
        relative: the vectors of distances, which the backbone owns; None: without distances.
    """

    def __init__(self, config: DebertaConfig, relative: RelativeVectors | None) -> None:
        size = config.hidden_size
        head = size // config.num_attention_heads
        kinds = set(config.pos_att_type)
        # Each kind of score adds to the variance of the sum.
        factor = 1 / math.sqrt(head * (1 + len(kinds)))
        dropout = config.attention_probs_dropout_prob
        super().__init__(size, config.num_attention_heads, dropout, scale=factor)
        self.factor = factor
        self.config, self.kinds = config, kinds
        self.relative = (relative,)  # in a tuple: not a part of this module
        self.position_key: Linear | None = None
        self.position_query: Linear | None = None
        if relative is not None and not config.share_att_key:
            self.position_key = Linear(size, size) if "c2p" in kinds else None
            self.position_query = Linear(size, size) if "p2c" in kinds else None

    @override
    def pass_bias(self, layout: Layout) -> ScoreBias | None:
        (relative,) = self.relative
        if relative is None or not self.kinds or not layout.lengths:
            return None
        # Only the vectors of distances that occur are mapped: a short text needs few of them.
        span = self.config.span
        table = bucket_table(
            max(layout.max_seqlen, 1), self.config.position_buckets, self.config.span_limit
        )
        reach = min(int(table.abs().max()), span)
        first = span - reach
        vectors = relative(slice(first, span + reach + 1))
        keys = self._mapped(vectors, self.position_key, 1) if "c2p" in self.kinds else None
        queries = self._mapped(vectors, self.position_query, 0) if "p2c" in self.kinds else None
        table, rows = table.to(vectors.device), len(vectors)

        def bias(q: Tensor, k: Tensor, distance: Tensor) -> Tensor:
            # The row of each pair: keys before their query lie above the middle.
            # Padding at the end of a group's keys may be further away than any token.
            bucket = table[distance.abs().clamp(max=len(table) - 1)] * -distance.sign()
            index = (bucket + (span - first)).clamp(0, rows - 1)[:, None]
            total: Tensor | None = None
            if keys is not None:
                total = _picked(q @ keys, index)
            if queries is not None:
                picked = _picked(k @ queries, index.transpose(-1, -2)).transpose(-1, -2)
                total = picked if total is None else total + picked
            assert total is not None  # noqa: S101 - there is a kind of score
            return total * self.factor

        return bias

    def _mapped(self, vectors: Tensor, own: Linear | None, part: int) -> Tensor:
        """Map the vectors of distances as keys (part 1) or as queries (part 0), `[H, D, rows]`."""
        width = self.width
        if own is not None:
            mapped = own(vectors)
        else:
            mapped = self.qkv.part(vectors, slice(part * width, (part + 1) * width))
        return mapped.view(len(vectors), self.num_heads, -1).permute(1, 2, 0)  # type: ignore[no-any-return]


def _picked(scores: Tensor, index: Tensor) -> Tensor:
    """Pick scores `[B, H, L, rows]` by `[1 or B, 1, L, other]`: `[B, H, L, other]`."""
    return scores.gather(-1, index.expand(*scores.shape[:3], index.shape[-1]))


class ConvolvedLayer(PostNormLayer):
    """A layer with a convolution beside it: LayerNorm(Layer(x) + act(Conv(x))).

    Each sequence is convolved by itself, with zeros beyond its ends.
    """

    def __init__(self, config: DebertaConfig, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        size, kernel = config.hidden_size, config.conv_kernel_size
        self.convolution = nn.Conv1d(size, size, kernel, groups=config.conv_groups)
        self.convolution_activation = ACTIVATIONS[config.conv_act]
        self.convolution_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    @override
    def forward(
        self, x: Tensor, layout: Layout, *, select: Selection | None = None, **options: Any
    ) -> Tensor:
        seen = self.dropout(self._convolved(x, layout))
        added = self.convolution_activation(seen if select is None else seen[select.rows])
        out: Tensor = self.convolution_norm(
            super().forward(x, layout, select=select, **options) + added
        )
        return out

    def _convolved(self, x: Tensor, layout: Layout) -> Tensor:
        """Convolve each sequence, `[rows, hidden]`; rows past the layout are zeros."""
        # One line, with as many zeros before each sequence and after the last as are looked at.
        total, gap = layout.total, self.convolution.kernel_size[0] // 2
        lengths = torch.tensor(layout.lengths, device=x.device)
        owners = torch.repeat_interleave(lengths, output_size=total)
        places = torch.arange(total, device=x.device) + gap * (owners + 1)
        line = x.new_zeros(total + gap * (len(lengths) + 1), x.shape[1])
        line = line.index_copy(0, places, x[:total])
        convolved: Tensor = self.convolution(line.t()[None])[0].t()
        # Without padding of its own, the convolution begins where the first sequence does.
        return F.pad(convolved[places - gap], (0, 0, 0, len(x) - total))


class DebertaModel(Backbone):
    """The encoder: packed batch in, hidden states out."""

    config_class = DebertaConfig
    config: DebertaConfig

    def __init__(self, config: DebertaConfig) -> None:
        relative = RelativeVectors(config) if config.relative_attention else None

        def layer(kind: Callable[..., PostNormLayer]) -> PostNormLayer:
            return kind(
                *(config.hidden_size, config.num_attention_heads, config.intermediate_size),
                config.hidden_act,
                dropout=config.hidden_dropout_prob,
                attention_dropout=config.attention_probs_dropout_prob,
                eps=config.layer_norm_eps,
                attention=DisentangledAttention(config, relative),
            )

        first = partial(ConvolvedLayer, config) if config.conv_kernel_size else PostNormLayer
        layers = [layer(PostNormLayer if i else first) for i in range(config.num_hidden_layers)]
        super().__init__(config, DebertaEmbeddings(config), layers)
        self.relative = relative
        self.init_weights()


def _classifier(
    backbone: DebertaModel, labels: int, dropout: float | None = None
) -> DenseClassifier:
    """The pooler (section 4.1 of BERT, with another activation) and a linear map."""
    config = backbone.config
    usual = config.hidden_dropout_prob if config.cls_dropout is None else config.cls_dropout
    return DenseClassifier(
        backbone,
        labels,
        usual if dropout is None else dropout,
        activation=config.pooler_hidden_act,
        first_dropout=config.pooler_dropout,
    )


_CLASSIFIER = rules(("dense", "pooler.dense"), ("classifier", "classifier"))
_LAYER = "encoder.layer.{i}"
_SELF = f"{_LAYER}.attention.self"


def _masked_lm(front: str, dense: str, tied: Mapping[str, str]) -> HeadLayout:
    return HeadLayout(
        "DebertaV2ForMaskedLM",
        bert_masked_lm,
        rules(
            ("transform", f"{front}.{dense}dense"),
            ("norm", f"{front}.{dense}LayerNorm"),
            ("bias", f"{front}.bias"),
        ),
        tied,
    )


def _variant(config: Mapping[str, Any]) -> Family:
    """The layout of the file: without `legacy` the head for masked tokens has other names."""
    return FAMILY if config.get("legacy", True) is not False else MODERN


FAMILY = Family(
    model_type="deberta-v2",
    prefix="deberta.",
    backbone=DebertaModel,
    rules=rules(
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.segments.weight", "embeddings.token_type_embeddings.weight"),
        ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
        ("embeddings.project.weight", "embeddings.embed_proj.weight"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        ("relative.vectors.weight", "encoder.rel_embeddings.weight"),
        ("relative.norm", "encoder.LayerNorm"),
        ("layers.0.convolution", "encoder.conv.conv"),
        ("layers.0.convolution_norm", "encoder.conv.LayerNorm"),
        (
            "layers.{i}.attention.qkv",
            tuple(f"{_SELF}.{part}_proj" for part in ("query", "key", "value")),
        ),
        ("layers.{i}.attention.position_key", f"{_SELF}.pos_key_proj"),
        ("layers.{i}.attention.position_query", f"{_SELF}.pos_query_proj"),
        ("layers.{i}.attention.output", f"{_LAYER}.attention.output.dense"),
        ("layers.{i}.attention_norm", f"{_LAYER}.attention.output.LayerNorm"),
        ("layers.{i}.feed_forward.up", f"{_LAYER}.intermediate.dense"),
        ("layers.{i}.feed_forward.down", f"{_LAYER}.output.dense"),
        ("layers.{i}.feed_forward_norm", f"{_LAYER}.output.LayerNorm"),
    ),
    heads={
        "backbone": HeadLayout("DebertaV2Model"),
        "sequence_classification": HeadLayout(
            "DebertaV2ForSequenceClassification", _classifier, _CLASSIFIER
        ),
        "multiple_choice": HeadLayout(
            "DebertaV2ForMultipleChoice",
            lambda backbone, labels, dropout=None: _classifier(backbone, 1, dropout),
            _CLASSIFIER,
        ),
        **token_heads("DebertaV2"),
        "masked_lm": _masked_lm(
            "cls.predictions",
            "transform.",
            {
                "cls.predictions.decoder.weight": "embeddings.tokens.weight",
                "cls.predictions.decoder.bias": "bias",
            },
        ),
    },
    ignored=ENCODER_IGNORED,
    # Of v3's pre-training: a generator's head, and one that tells replaced tokens.
    other_heads=("lm_predictions", "mask_predictions"),
    # He et al. 2021 (v3), table 3, and the sizes of the published files.
    presets={
        f"deberta-v3-{name}": {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": hidden // 64,
            "intermediate_size": 4 * hidden,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        }
        for name, layers, hidden in (
            ("xsmall", 12, 384),
            ("small", 6, 768),
            ("base", 12, 768),
            ("large", 24, 1024),
        )
    },
    tokenizer="minilm",
    variant=_variant,
)
MODERN = replace(
    FAMILY,
    heads={**FAMILY.heads, "masked_lm": _masked_lm("lm_predictions.lm_head", "", {})},
)
