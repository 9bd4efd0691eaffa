"""Cross-entropy with label smoothing, the z-loss, class weights and the focal loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pretune.data.arrays import Array
from pretune.data.batch import Layout
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.base import TaskOptions
from pretune.tasks.grading import EachLoss

#: The target of each token: the one after it; and what stands there where that is not foretold.
NEXT, IGNORED = "next", -100


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
    *,
    class_weights: Sequence[float] | None = None,
    focal_gamma: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum over the rows of what is minimised, in float32, and what it is made of.

    With `Z` the sum of `exp(logits)`, `C` classes and `p` the probability of the row's label, a row
    costs

        weight[label] * (1 - p)^gamma * H + z_loss * log(Z)^2
        H = (1 - smoothing) * -log p + smoothing / C * sum(-log p of every class)

    Label smoothing: Szegedy et al. 2016, section 7. The z-loss: de Brébisson & Vincent 2016;
    Chowdhery et al. 2022 (PaLM), section 5, with 1e-4. The focal loss, whose alpha are the class
    weights: Lin et al. 2017, equation 5.

    Args:
        logits: `[N, C]` of any floating type.
        labels: `[N]` int64.
        smoothing: the share of the target that all classes get, at least 0 and below 1.
        z_loss: the weight of the penalty, at least 0.
        ignore_index: rows with this label count nothing.
        class_weights: what a row of each class weighs; None: 1.
        focal_gamma: how much less rows count that are right already, at least 0.

    Returns:
        the sum with its graph; and, where it is not the plain cross-entropy, sums without a graph:
        `cross_entropy`, the plain one, and `z_loss`, weighted, if on.
    """
    logits = logits.float()
    log_p = F.log_softmax(logits, -1)
    plain = F.nll_loss(log_p, labels, reduction="sum", ignore_index=ignore_index)
    uneven = class_weights is not None or focal_gamma > 0
    if not (smoothing or z_loss or uneven):
        return plain, {}
    total, parts, counted = plain, {"cross_entropy": plain.detach()}, labels != ignore_index
    if uneven:
        kept = log_p[counted]
        factors = _row_factors(kept, labels[counted], class_weights, focal_gamma)
        total = (factors * _smoothed(kept, labels[counted], smoothing)).sum()
    elif smoothing:
        spread = -log_p.mean(-1)[counted].sum()
        total = (1.0 - smoothing) * plain + smoothing * spread
    if z_loss:
        penalty = z_loss * logits.logsumexp(-1)[counted].square().sum()
        total = total + penalty
        parts["z_loss"] = penalty.detach()
    return total, parts


def _smoothed(log_p: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """`[N]`: `H` of each row."""
    own = -log_p.gather(-1, labels[:, None])[:, 0]
    return (1.0 - smoothing) * own - smoothing * log_p.mean(-1) if smoothing else own


def _row_factors(
    log_p: Tensor, labels: Tensor, class_weights: Sequence[float] | None, focal_gamma: float
) -> Tensor:
    """`[N]`: what stands before `H` of each row."""
    factors = torch.ones_like(log_p[:, 0])
    if class_weights is not None:
        factors = factors.new_tensor(class_weights)[labels]
    if focal_gamma:
        own = log_p.gather(-1, labels[:, None])[:, 0]
        # 1 - p without loss of digits; the slope of x^gamma at 0 is infinite for gamma below 1.
        wrong = (-torch.expm1(own)).clamp_min(torch.finfo(own.dtype).tiny)
        factors = factors * wrong.pow(focal_gamma)
    return factors


def sums_of(each: Tensor, layout: Layout) -> Tensor:
    """`[B]` float64 on the host: the sum over the rows of each sequence.

    Args:
        each: `[R]` numbers of some tokens.
        layout: how many of them are of each sequence.
    """
    parts = torch.split(each.detach().cpu().double(), list(layout.lengths))
    return torch.stack([part.sum() for part in parts])


def token_losses(scores: Scores, layout: Layout) -> EachLoss:
    """The cross-entropy of each sequence, counted in tokens.

    Args:
        scores: of tokens of a batch.
        layout: how many of them are of each sequence.
    """
    return EachLoss(sums_of(scores.nats, layout), torch.tensor(layout.lengths))


#: A perplexity is computed from this many nats at most: beyond, exp overflows.
_MAX_NATS = 700.0


def perplexity(nats: float, count: int) -> float:
    """Exp of the mean over `count` tokens that cost `nats` together."""
    return math.exp(min(nats / max(count, 1), _MAX_NATS))


def with_perplexity(figures: dict[str, Array], name: str = "perplexity") -> dict[str, Array]:
    """Figures, and after them exp of the loss."""
    return {**figures, name: np.exp(np.minimum(figures["loss"], _MAX_NATS))}
