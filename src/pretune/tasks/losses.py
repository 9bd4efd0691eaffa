"""Cross-entropy with what helps large trainings: label smoothing and the z-loss."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pretune.data import Layout
from pretune.models import Scores
from pretune.tasks.base import TaskOptions
from pretune.tasks.grade import Array, EachLoss


class CrossEntropyOptions(TaskOptions):
    """Options of every task that is trained by cross-entropy."""

    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="This share of each target is spread evenly over all classes (0.1 is usual).",
    )
    z_loss: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="This times log(Z)^2 is added, which keeps the logits from drifting (1e-4).",
    )

    def parts_of(self, scores: Scores) -> dict[str, Tensor]:
        """What the sum in some scores is made of, where it is more than the cross-entropy."""
        parts: dict[str, Tensor] = {}
        if self.label_smoothing or self.z_loss:
            parts["cross_entropy"] = scores.cross_entropy
        if self.z_loss:
            parts["z_loss"] = scores.z_loss
        return parts

    @property
    def how(self) -> dict[str, float]:
        """Options of `models.scores.score_tokens`."""
        return {"smoothing": self.label_smoothing, "z_loss": self.z_loss}


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum over the rows of what is minimised, in float32, and what it is made of.

    With `Z` the sum of `exp(logits)` and `C` classes, a row costs

        (1 - smoothing) * -log p[label] + smoothing / C * sum(-log p) + z_loss * log(Z)^2

    Label smoothing: Szegedy et al. 2016, section 7. The z-loss: de Brébisson & Vincent 2016;
    Chowdhery et al. 2022 (PaLM), section 5, with 1e-4.

    Args:
        logits: `[N, C]` of any floating type.
        labels: `[N]` int64.
        smoothing: the share of the target that all classes get, at least 0 and below 1.
        z_loss: the weight of the penalty, at least 0.
        ignore_index: rows with this label count nothing.

    Returns:
        the sum with its graph; and, where smoothing or z-loss is on, sums without a graph:
        `cross_entropy`, the plain one, and `z_loss`, weighted, if on.
    """
    logits = logits.float()
    log_p = F.log_softmax(logits, -1)
    plain = F.nll_loss(log_p, labels, reduction="sum", ignore_index=ignore_index)
    if not (smoothing or z_loss):
        return plain, {}
    total, parts, counted = plain, {"cross_entropy": plain.detach()}, labels != ignore_index
    if smoothing:
        spread = -log_p.mean(-1)[counted].sum()
        total = (1.0 - smoothing) * plain + smoothing * spread
    if z_loss:
        penalty = z_loss * logits.logsumexp(-1)[counted].square().sum()
        total = total + penalty
        parts["z_loss"] = penalty.detach()
    return total, parts


def token_losses(scores: Scores, layout: Layout) -> EachLoss:
    """The cross-entropy of each sequence, counted in tokens.

    Args:
        scores: of tokens of a batch.
        layout: how many of them are of each sequence.
    """
    return EachLoss(torch.tensor(scores.each(layout)), torch.tensor(layout.lengths))


def with_perplexity(figures: dict[str, Array], name: str = "perplexity") -> dict[str, Array]:
    """Figures, and after them exp of the loss."""
    return {**figures, name: np.exp(np.minimum(figures["loss"], 700.0))}
