"""Telling replaced tokens apart, and a second model that is trained beside the first.

ELECTRA's pre-training (Clark et al. 2020, section 3) has two encoders: a small generator replaces
tokens, and the discriminator tells which. The generator is a model of its own with a head for
masked tokens; it may look its tokens up in the tables of the discriminator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError, with_article
from pretune.models.backbone import Backbone, backbone_of
from pretune.models.config import ModelConfig
from pretune.models.heads.vocabulary import Scores
from pretune.models.layers import RMSNorm

#: The name of the second model as a part of the first.
COMPANION = "companion"


def companion_of(model: nn.Module) -> nn.Module | None:
    """Return the model that is trained beside another one, if there is any."""
    companion = getattr(model, COMPANION, None)
    return companion if isinstance(companion, nn.Module) else None


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a `state_dict` that are not those of a companion."""
    return {n: tensor for n, tensor in state.items() if not n.startswith(f"{COMPANION}.")}


@dataclass(frozen=True)
class Detection:
    """What is told of the tokens of a batch.

    Attributes:
        logits: `[T]`, above 0 where the token looks replaced.
        replaced: `[T]` bool: which tokens were; None where nobody replaced any.
        scores: how well the generator knew the masked tokens; None without masks.
    """

    logits: Tensor
    replaced: Tensor | None = None
    scores: Scores | None = None


class Detector(nn.Module):
    """Tells which tokens were replaced; beside it may be the generator that replaces them."""

    def judge(self, batch: PackedBatch) -> Tensor:
        """Give a logit for each token, `[T]`: above 0, it looks replaced."""
        raise NotImplementedError

    def forward(
        self,
        batch: PackedBatch,
        *,
        labels: Tensor | None = None,
        draws: Tensor | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Detection:
        """Judge texts as they are; or those that the generator makes of texts with masks.

        In one call, so that whatever spreads a model over processes sees both parts at work.

        Args:
            batch: texts; with `labels` those that the generator reads.
            labels: `[T]` the masked tokens, below 0 where none is masked.
            draws: `[T]` numbers in [0, 1) that choose a replacement, as for `score_tokens`.
            smoothing: label smoothing of the generator, as for `score_tokens`.
            z_loss: weight of the generator's z-loss.

        Raises:
            CheckpointError: there are labels, but no generator.
        """
        if labels is None or draws is None:
            return Detection(self.judge(batch))
        generator = companion_of(self)
        if generator is None:
            raise CheckpointError(
                "the model has no generator, which replaces tokens before it tells which",
                "Train it with one (task.generator=SOURCE, e.g. google/electra-small-generator), "
                "or with a new one, which a training makes. Texts as they are: pretune predict.",
            )
        # The generator scores the masked tokens alone, and draws from the same logits. What it
        # draws has no gradient (section 3.1: the two are no adversaries).
        select = batch.where(labels >= 0)
        scores: Scores = generator(
            batch,
            select=select,
            labels=labels[select.rows],
            draws=draws[select.rows],
            smoothing=smoothing,
            z_loss=z_loss,
        )
        assert scores.drawn is not None  # noqa: S101 - numbers to draw by were given
        # The text as it was, and as the discriminator reads it.
        original = torch.where(labels >= 0, labels, batch.tokens)
        corrupt = original.index_copy(0, select.rows, scores.drawn)
        logits = self.judge(replace(batch, tokens=corrupt))
        return Detection(logits, corrupt != original, scores)


def join(model: nn.Module, companion: nn.Module, *, shared: bool) -> None:
    """Train a second model beside the first.

    Args:
        model: gets the other one as its part `companion`.
        companion: the second model, of the same family.
        shared: whether it looks its tokens up in the embeddings of the first one (Clark et al.
            2020, section 3.2), which both then train.

    Raises:
        CheckpointError: they are to share embeddings, but theirs have different shapes.
    """
    model.add_module(COMPANION, companion)
    if shared:
        share_embeddings(backbone_of(model), backbone_of(companion))
        if not shares_embeddings(model):
            raise CheckpointError(
                "the embeddings of the generator have another shape than those of the model",
                "Set task.share_embeddings=false, or name another generator.",
            )


def share_embeddings(owner: Backbone, other: Backbone) -> None:
    """Let a model use the tables and norms of another one's embeddings; its own are dropped.

    Maps from the embeddings to the hidden states stay its own, as do norms of another width.
    """
    for name, part in owner.embeddings.named_children():
        if isinstance(part, nn.Embedding | nn.LayerNorm | RMSNorm) and _alike(
            part, other.embeddings.get_submodule(name)
        ):
            other.embeddings.add_module(name, part)


def shares_embeddings(model: nn.Module) -> bool:
    """Tell whether a model and its companion have one table of tokens."""
    companion = companion_of(model)
    if companion is None:
        return False
    own, other = (backbone_of(part).embeddings.tokens for part in (model, companion))
    return own is other


def _alike(part: nn.Module, other: nn.Module) -> bool:
    """Tell whether the parameters of two modules have the same shapes."""
    shapes = [[p.shape for p in module.parameters()] for module in (part, other)]
    return shapes[0] == shapes[1]


def smaller(backbone: Backbone, size: float, *, shared: bool) -> ModelConfig:
    """Return the sizes of a companion.

    It is narrower, in whole heads, and as deep (Clark et al. 2020, section 3.2). Where embeddings
    are shared and always as wide as the layers, as in BERT, it is as wide and has fewer layers
    (He et al. 2021, arXiv:2111.09543, section 3).

    Args:
        backbone: of the larger model.
        size: the share of the width, or of the layers, in (0, 1].
        shared: whether both have one table of tokens.
    """
    config = backbone.config
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    hidden, heads, inner, layers = (config.size(name) for name in sizes)
    apart = "embedding_size" in {item.name for item in fields(config)}
    if shared and not apart:
        return config.with_layers(range(max(1, round(size * layers))))
    fewer = max(1, round(size * heads))
    entries: dict[str, Any] = {
        "hidden_size": fewer * (hidden // heads),
        "num_attention_heads": fewer,
        "intermediate_size": max(1, round(size * inner)),
    }
    if apart:
        width = backbone.embeddings.tokens.weight.shape[1]
        entries["embedding_size"] = width if shared else min(width, entries["hidden_size"])
    try:
        return config.resized(**entries)
    except CheckpointError as error:
        raise CheckpointError(
            f"{with_article(config.model_type)} model of this share cannot be made "
            f"({error.message})",
            "task.share_embeddings=true makes one of fewer layers; or task.generator_size=1.",
        ) from None
