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

#: The name of the targets of a language model: for each token the one that follows it.
NEXT = "next"
#: In place of a target where none is predicted.
IGNORED = -100


class CrossEntropyOptions(TaskOptions):
    """Options of every task that is trained by cross-entropy."""

    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Spread this share of each target evenly over all classes (usual: 0.1).",
    )
    z_loss: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Add this times log(Z)^2 to the loss, which keeps the logits from drifting "
        "(usual: 1e-4).",
    )

    @property
    def score_options(self) -> dict[str, float]:
        """The options as arguments of `models.heads.vocabulary.score_tokens`."""
        return {"smoothing": self.label_smoothing, "z_loss": self.z_loss}

    def loss_parts(self, scores: Scores) -> dict[str, Tensor]:
        """Return the parts of the loss, by name; none where it is the plain cross-entropy."""
        parts: dict[str, Tensor] = {}
        if self.label_smoothing or self.z_loss:
            parts["cross_entropy"] = scores.cross_entropy
        if self.z_loss:
            parts["z_loss"] = scores.z_loss
        return parts


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    *,
    class_weights: Sequence[float] | None = None,
    focal_gamma: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss as a sum over rows, in float32.

    With `Z` the sum of `exp(logits)`, `C` classes and `p` the probability of the row's label, a row
    contributes

        weight[label] * (1 - p)^gamma * H + z_loss * log(Z)^2
        H = (1 - smoothing) * -log p + smoothing / C * sum(-log p of every class)

    Label smoothing: Szegedy et al. 2016, section 7. The z-loss: de Brébisson & Vincent 2016;
    Chowdhery et al. 2022 (PaLM), section 5, with 1e-4. The focal loss, whose alpha is the class
    weight: Lin et al. 2017, equation 5.

    Args:
        logits: `[N, C]` of any floating type.
        labels: `[N]` int64; rows with the label `IGNORED` do not count.
        smoothing: the share of the target that is spread over all classes, in [0, 1).
        z_loss: the weight of the penalty, at least 0.
        class_weights: the weight of a row by its class; None: 1.
        focal_gamma: how strongly rows that are already right are discounted, at least 0.

    Returns:
        the sum, with its graph; and the sums that it is made of, without a graph, where it is not
        the plain cross-entropy: `cross_entropy`, the plain one, and `z_loss` with its weight.
    """
    # The plain cross-entropy: alone, or shown beside what is minimised.
    logits = logits.float()
    log_p = F.log_softmax(logits, -1)
    plain = F.nll_loss(log_p, labels, reduction="sum", ignore_index=IGNORED)
    weighted = class_weights is not None or focal_gamma > 0
    if not (smoothing or z_loss or weighted):
        return plain, {}
    # What is minimised: H with its factors, if rows differ in weight.
    total, parts, counted = plain, {"cross_entropy": plain.detach()}, labels != IGNORED
    if weighted:
        rows = _weighted(log_p[counted], labels[counted], smoothing, class_weights, focal_gamma)
        total = rows.sum()
    elif smoothing:
        # H summed over the rows, where `plain` already is the sum of -log p.
        uniform = -log_p.mean(-1)[counted].sum()
        total = (1.0 - smoothing) * plain + smoothing * uniform
    # The penalty on log Z, without the factors.
    if z_loss:
        penalty = z_loss * logits.logsumexp(-1)[counted].square().sum()
        total = total + penalty
        parts["z_loss"] = penalty.detach()
    return total, parts


def _weighted(
    log_p: Tensor,
    labels: Tensor,
    smoothing: float,
    class_weights: Sequence[float] | None,
    focal_gamma: float,
) -> Tensor:
    """Compute `[N]`: H of each row, times its factor."""
    smoothed = -log_p.gather(-1, labels[:, None])[:, 0]
    if smoothing:
        smoothed = (1.0 - smoothing) * smoothed - smoothing * log_p.mean(-1)
    factors = torch.ones_like(log_p[:, 0])
    if class_weights is not None:
        factors = factors.new_tensor(class_weights)[labels]
    if focal_gamma:
        own = log_p.gather(-1, labels[:, None])[:, 0]
        # expm1 computes 1 - p without cancellation. The derivative of x^gamma at 0 is infinite for
        # gamma below 1, so x stays above 0.
        wrong = (-torch.expm1(own)).clamp_min(torch.finfo(own.dtype).tiny)
        factors = factors * wrong.pow(focal_gamma)
    return factors * smoothed


def sum_by_sequence(values: Tensor, layout: Layout) -> Tensor:
    """Add up numbers `[R]` of tokens over the sequences of a layout: `[B]` float64 on the host."""
    parts = torch.split(values.detach().cpu().double(), list(layout.lengths))
    return torch.stack([part.sum() for part in parts])


def token_losses(scores: Scores, layout: Layout) -> EachLoss:
    """Return the cross-entropy of each sequence of a layout, counted in tokens."""
    return EachLoss(sum_by_sequence(scores.nats, layout), torch.tensor(layout.lengths))


#: Perplexities are computed from at most this many nats per token: beyond, exp overflows.
_MAX_NATS = 700.0


def perplexity(nats: float, count: int) -> float:
    """Compute exp of the mean of a total of `nats` over `count` tokens."""
    return math.exp(min(nats / max(count, 1), _MAX_NATS))


def with_perplexity(figures: dict[str, Array], name: str = "perplexity") -> dict[str, Array]:
    """Add a perplexity, exp of the loss, to figures."""
    return {**figures, name: np.exp(np.minimum(figures["loss"], _MAX_NATS))}
