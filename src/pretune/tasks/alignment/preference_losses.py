"""Losses of learning from preferences, each a formula of its paper, over N pairs of replies.

All of them read the same figures: the log-probability of each reply under the model (the policy
pi), and under a frozen reference. Their difference times beta is a reply's *implicit reward*
(Rafailov et al. 2023, "Direct preference optimization", equation 5, without its term that depends
on the prompt alone).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairScores:
    """How probable the replies of N pairs are.

    Attributes:
        chosen: `[N]` log-probability of each chosen reply: the sum over its tokens, in nats.
        rejected: `[N]` the same for the rejected replies.
        chosen_tokens: `[N]` tokens of each chosen reply, its end included.
        rejected_tokens: `[N]` tokens of each rejected reply.
        reference_chosen: `[N]` log-probability of the chosen replies under the reference; zeros
            for a loss without one.
        reference_rejected: `[N]` the same for the rejected replies.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """`[N]` log(pi / reference) of the chosen replies."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """`[N]` log(pi / reference) of the rejected replies."""
        return self.rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        """`[N]` by how much the ratio of the chosen reply is above that of the rejected one."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def token_margin(self) -> Tensor:
        """`[N]` the margin of the ratios a token."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


@dataclass(frozen=True)
class LossSettings:
    """The numbers in the losses' formulas.

    Attributes:
        beta: how much a reply's log-ratio counts: the strength of the tie to the reference.
        label_smoothing: the share of pairs that are taken to be the wrong way round.
        gamma: by how much the chosen reply of `simpo` has to be better.
        desirable_weight: weight of wanted replies in `kto`.
        undesirable_weight: weight of unwanted replies in `kto`.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


def sigmoid(pairs: PairScores, how: LossSettings) -> Tensor:
    """DPO (Rafailov et al. 2023, equation 7); with label smoothing conservative DPO (Mitchell 2023,
    "A note on DPO with noisy preferences & relationship to IPO")."""
    return _binary(how.beta * pairs.margin, how.label_smoothing)


def sigmoid_norm(pairs: PairScores, how: LossSettings) -> Tensor:
    """DPO on log-ratios a token (Lambert et al. 2024, "Tulu 3", length-normalised DPO)."""
    return _binary(how.beta * pairs.token_margin, how.label_smoothing)


def ipo(pairs: PairScores, how: LossSettings) -> Tensor:
    """IPO on log-ratios a token (Azar et al. 2024, equation 17, with tau = beta)."""
    return (pairs.token_margin - 1 / (2 * how.beta)).square()


def ipo_sum(pairs: PairScores, how: LossSettings) -> Tensor:
    """IPO on log-ratios of whole replies, as its paper writes them (Azar et al. 2024, eq. 17)."""
    return (pairs.margin - 1 / (2 * how.beta)).square()


def hinge(pairs: PairScores, how: LossSettings) -> Tensor:
    """SLiC's calibration loss with the margin 1 on DPO's rewards (Zhao et al. 2023;
    Liu et al. 2024, "Statistical rejection sampling improves preference optimization")."""
    return torch.relu(1 - how.beta * pairs.margin)


def robust(pairs: PairScores, how: LossSettings) -> Tensor:
    """Robust DPO: unbiased where `label_smoothing` of the pairs are the wrong way round (Ray
    Chowdhury et al. 2024, "Provably robust DPO")."""
    share, x = how.label_smoothing, how.beta * pairs.margin
    return (share * F.logsigmoid(-x) - (1 - share) * F.logsigmoid(x)) / (1 - 2 * share)


def apo_zero(pairs: PairScores, how: LossSettings) -> Tensor:
    """APO-zero: chosen replies become likelier, rejected ones less likely (D'Oosterlinck et al.
    2024, "Anchored preference optimization", equation 7)."""
    chosen = 1 - torch.sigmoid(how.beta * pairs.chosen_ratio)
    return chosen + torch.sigmoid(how.beta * pairs.rejected_ratio)


def sft(pairs: PairScores, how: LossSettings) -> Tensor:
    """The cross-entropy of the chosen reply, a token of it: the term that keeps it likely
    (Pang et al. 2024, "Iterative reasoning preference optimization", equation 1)."""
    return -pairs.chosen / pairs.chosen_tokens


def orpo(pairs: PairScores, how: LossSettings) -> Tensor:
    """ORPO: the cross-entropy of the chosen reply, and beta times how much higher its odds should
    be; no reference (Hong et al. 2024, "ORPO", equations 4 and 7)."""
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen - how.beta * F.logsigmoid(log_odds)


def simpo(pairs: PairScores, how: LossSettings) -> Tensor:
    """SimPO: log-probabilities a token with a target margin; no reference (Meng et al. 2024,
    equation 6)."""
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    return _binary(how.beta * (chosen - rejected) - how.gamma, how.label_smoothing)


def cpo(pairs: PairScores, how: LossSettings) -> Tensor:
    """CPO: DPO with a uniform reference, plus the cross-entropy of the chosen reply, a token of
    it (Xu et al. 2024, "Contrastive preference optimization")."""
    preference = _binary(how.beta * (pairs.chosen - pairs.rejected), how.label_smoothing)
    return preference - pairs.chosen / pairs.chosen_tokens


def kto(ratio: Tensor, wanted: Tensor, baseline: Tensor, how: LossSettings) -> Tensor:
    """KTO, for replies that are wanted or not, without pairs (Ethayarajh et al. 2024, eq. 7).

    Args:
        ratio: `[N]` log(pi / reference) of each reply.
        wanted: `[N]` bool.
        baseline: scalar z0 without a graph: the estimate of KL(pi || reference), at least 0.
        how: beta, and the weights of wanted and unwanted replies.

    Returns:
        `[N]`: weight (1 - v), which is half the weight where the model is the reference.
    """
    x = how.beta * (ratio - baseline)
    value = torch.sigmoid(torch.where(wanted, x, -x))
    weight = torch.where(wanted, how.desirable_weight, how.undesirable_weight)
    return weight * (1 - value)


def _binary(x: Tensor, smoothing: float) -> Tensor:
    """-log sigmoid(x), mixed with the loss of the opposite answer."""
    if not smoothing:
        return -F.logsigmoid(x)
    return -(1 - smoothing) * F.logsigmoid(x) - smoothing * F.logsigmoid(-x)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of numbers below 0, exact on both sides of -log 2 (Maechler 2012)."""
    # A probability of 1 would make the odds infinite.
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    # Each branch gets an argument at which it and its derivative are finite.
    small = x > -math.log(2)
    near = torch.log(-torch.expm1(torch.where(small, x, -1.0)))
    return torch.where(small, near, torch.log1p(-torch.exp(torch.where(small, -1.0, x))))


#: The losses over pairs, by the name that a recipe gives them.
PAIR_LOSSES: dict[str, Callable[[PairScores, LossSettings], Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "hinge": hinge,
    "robust": robust,
    "apo_zero": apo_zero,
    "sft": sft,
    "orpo": orpo,
    "simpo": simpo,
    "cpo": cpo,
}
#: Those that need no reference.
WITHOUT_REFERENCE = ("sft", "orpo", "simpo", "cpo")
#: Numbers that not every formula has, and the losses that read them.
READ_BY: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("sigmoid", "sigmoid_norm", "robust", "simpo", "cpo"),
    "gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}
