"""`ppo`: proximal policy optimization of what a model writes (Schulman et al. 2017; for language
models Ziegler et al. 2019, "Fine-tuning language models from human preferences")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.alignment.aligned import ActionScores
from pretune.tasks.alignment.policy import (
    ADVANTAGE,
    OLD,
    Attempt,
    Policy,
    PolicyOptions,
)
from pretune.tasks.alignment.policy_losses import (
    clipped_loss,
    clipped_value_loss,
    generalized_advantages,
    next_beta,
    whitened,
)
from pretune.tasks.base import Loss
from pretune.tasks.dialogue.dialogue import InstructOptions

#: Targets of each action: the value of the state before it when it was written, and its return.
VALUE, RETURN = "value", "return"


class PpoOptions(PolicyOptions):
    """Options of `ppo`."""

    name: Literal["ppo"] = Field(  # type: ignore[assignment]
        "ppo", description="Replies, learned from rewards with a model of what they will be."
    )
    passes: int = Field(4, ge=1, description="How often the replies of a rollout are trained on.")
    beta: float = Field(
        0.05,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the KL in the reward; with target_kl only at the start.",
    )
    target_kl: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Let beta follow this KL, in nats a reply (usual: 6).",
    )
    kl_horizon: int = Field(10_000, ge=1, description="In how many replies it does (target_kl).")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount of later rewards.")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="Decay of the errors in an advantage (GAE)."
    )
    whiten: bool = Field(
        True, description="Scale the advantages of a rollout to mean 0, variance 1."
    )
    whiten_rewards: bool = Field(
        False, description="Scale the rewards of a rollout to variance 1; their mean stays."
    )
    clip_value: float = Field(
        0.2, gt=0, allow_inf_nan=False, description="How far a value may move in a rollout."
    )
    value_weight: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="Weight of the loss of the values."
    )


class Ppo(Policy):
    """Learns from its replies, each token of which has an advantage by a learned value.

    A reply's reward comes with its last token, and every token costs beta times
    log(policy / reference). The head of values reads the same hidden states as the one of tokens.
    """

    name: ClassVar[str] = "ppo"
    head: ClassVar[str] = "actor_critic"
    options_type: ClassVar[type[InstructOptions]] = PpoOptions
    options: PpoOptions
    figure_names: ClassVar[tuple[str, ...]] = (*Policy.figure_names, "explained_variance", "beta")

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, "actor_critic")

    @override
    def advantages(self, attempts: Sequence[Attempt]) -> dict[str, Array]:
        options, lengths = self.options, [len(attempt.tokens) for attempt in attempts]
        rewards = np.concatenate([self._token_rewards(attempt) for attempt in attempts])
        values = np.concatenate([attempt.values for attempt in attempts]).astype(np.float64)
        if options.whiten_rewards:
            rewards = whitened(rewards, shift=False)
        ends = np.cumsum(lengths)[:-1]
        advantages = np.concatenate(
            [
                generalized_advantages(own, value, options.gamma, options.gae_lambda)
                for own, value in zip(np.split(rewards, ends), np.split(values, ends), strict=True)
            ]
        )
        returns = advantages + values
        if options.whiten:
            advantages = whitened(advantages)
        return {ADVANTAGE: advantages, RETURN: returns, VALUE: values}

    def _token_rewards(self, attempt: Attempt) -> Array:
        """`[n]` float64: what each token costs, and with the last one the reward."""
        rewards = -self.beta * (attempt.old.astype(np.float64) - attempt.reference)
        rewards[-1] += attempt.reward
        return rewards

    @override
    def objective(self, scores: ActionScores, targets: Mapping[str, Tensor]) -> Loss:
        assert scores.values is not None  # noqa: S101 - the head has values
        old, options = targets[OLD], self.options
        policy = clipped_loss((scores.log_probs - old).exp(), targets[ADVANTAGE], options.clip)
        value = clipped_value_loss(
            scores.values.float(), targets[VALUE], targets[RETURN], options.clip_value
        )
        parts = self.changes(scores, old, torch.ones_like(old))
        return Loss(
            (policy + options.value_weight * value).sum(),
            len(old),
            {"policy_loss": policy.detach().sum(), "value_loss": value.detach().sum(), **parts},
        )

    @override
    def rollout_figures(
        self, attempts: Sequence[Attempt], targets: Mapping[str, Array]
    ) -> dict[str, float]:
        returns = targets[RETURN]
        left, all_of_it = np.var(returns - targets[VALUE]), np.var(returns)
        explained = 1 - left / all_of_it if all_of_it > 0 else 0.0
        figures = super().rollout_figures(attempts, targets)
        return {**figures, "explained_variance": float(explained), "beta": self.beta}

    @override
    def follow(self, attempts: Sequence[Attempt], figures: Mapping[str, float]) -> None:
        target, horizon = self.options.target_kl, self.options.kl_horizon
        if target is not None:
            self.beta = next_beta(self.beta, figures["kl"], target, len(attempts), horizon)
