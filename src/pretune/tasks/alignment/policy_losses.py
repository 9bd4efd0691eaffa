"""The formulas of on-policy reinforcement learning, each by itself: advantages, KL, losses.

An action is a token of a reply, its end included. Arrays are of one rollout, before training;
tensors are of one batch, with their graph.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pretune.data.arrays import Array

#: Keeps a division by a deviation finite.
LEAST_DEVIATION = 1e-4
#: Added to a variance before its root is taken (Ziegler et al. 2019, their code).
LEAST_VARIANCE = 1e-8
#: How far a rollout's KL counts as off its target (Ziegler et al. 2019, section 2.2).
MAX_ERROR = 0.2


def kl_estimates(log_ratio: Array) -> tuple[Array, Array, Array]:
    """Estimate KL(p || q) at samples of p, without logits (Schulman 2020, "Approximating KL").

    Args:
        log_ratio: `[...]` log p - log q of each sample.

    Returns:
        k1, unbiased; k2, of low variance; k3, unbiased and never below 0; `[...]` each.
    """
    return log_ratio, log_ratio**2 / 2, np.expm1(-log_ratio) + log_ratio


def k3(log_ratio: Tensor) -> Tensor:
    """The third estimate, with its graph: `log_ratio` is log p - log q at samples of p."""
    return torch.expm1(-log_ratio) + log_ratio


def generalized_advantages(rewards: Array, values: Array, gamma: float, decay: float) -> Array:
    """Generalized advantage estimates of one reply (Schulman et al. 2016, equation 16).

    Args:
        rewards: `[n]` for each action.
        values: `[n]` of the state before each action; behind the last one nothing is to come.
        gamma: discount of later rewards.
        decay: lambda: 0: the error of one step; 1: the whole return less the value.

    Returns:
        `[n]`.
    """
    errors = rewards + gamma * np.append(values[1:], 0.0) - values
    advantages, later = np.zeros(len(errors)), 0.0
    for t in reversed(range(len(errors))):
        later = errors[t] + gamma * decay * later
        advantages[t] = later
    return advantages


def whitened(values: Array, *, shift: bool = True) -> Array:
    """Scale values `[n]` to variance 1; with `shift` also to mean 0."""
    mean = values.mean()
    scaled: Array = (values - mean) / np.sqrt(values.var() + LEAST_VARIANCE)
    return scaled if shift else scaled + mean


def group_advantages(rewards: Array, *, scale: bool) -> Array:
    """How much better a reply is than the others to its prompt (Shao et al. 2024, section 4.1.2).

    Args:
        rewards: `[prompts, k]`.
        scale: whether to divide by the deviation in the group.

    Returns:
        `[prompts, k]`; exactly 0 where all replies of a group are equally good.
    """
    # Relative to the first one: equal rewards then give no rounding error.
    relative = rewards - rewards[:, :1]
    centred: Array = relative - relative.mean(1, keepdims=True)
    if not scale:
        return centred
    scaled: Array = centred / (relative.std(1, ddof=1, keepdims=True) + LEAST_DEVIATION)
    return scaled


def leave_one_out(rewards: Array) -> Array:
    """Rewards `[prompts, k]` less the mean of the other replies' (Ahmadian et al. 2024, eq. 9)."""
    relative = rewards - rewards[:, :1]
    others = relative.sum(1, keepdims=True) - relative
    advantages: Array = relative - others / (rewards.shape[1] - 1)
    return advantages


def next_beta(beta: float, kl: float, target: float, replies: int, horizon: int) -> float:
    """Follow a target of the KL by the weight of its penalty (Ziegler et al. 2019, section 2.2).

    Args:
        beta: of the rollout.
        kl: its mean KL, a reply.
        target: what that should be.
        replies: of the rollout.
        horizon: after how many replies an error has its full effect.
    """
    error = min(max(kl / target - 1, -MAX_ERROR), MAX_ERROR)
    return beta * (1 + error * replies / horizon)


def clipped_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The clipped surrogate of PPO (Schulman et al. 2017, equation 7), to be minimised."""
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error, of whichever is worse: the value, or its clipped change."""
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def per_reply(values: Array, lengths: Array, how: Callable[[Array], float]) -> Array:
    """Apply a function to the actions of each reply: `[n]`, laid end to end, to `[replies]`."""
    parts = np.split(values, np.cumsum(lengths)[:-1])
    return np.array([how(part) for part in parts])
