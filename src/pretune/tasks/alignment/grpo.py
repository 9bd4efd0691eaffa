"""`grpo`: replies that are better than others to the same prompt become likelier (Shao et al. 2024,
"DeepSeekMath", section 4.1). No value model: the group is the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.tasks.alignment.aligned import ActionScores
from pretune.tasks.alignment.policy import (
    ADVANTAGE,
    OLD,
    Attempt,
    Policy,
    PolicyOptions,
    by_action,
    of_replies,
)
from pretune.tasks.alignment.policy_losses import clipped_loss, group_advantages, k3
from pretune.tasks.base import REFERENCE, Loss
from pretune.tasks.dialogue.dialogue import InstructOptions


class GrpoOptions(PolicyOptions):
    """Options of `grpo`."""

    name: Literal["grpo"] = Field(  # type: ignore[assignment]
        "grpo", description="Replies, learned from which of a group have the higher rewards."
    )
    group: int = Field(8, ge=2, description="Replies to each prompt, which are compared.")
    beta: float = Field(
        0.04, ge=0, allow_inf_nan=False, description="Weight of the KL (k3) in the loss."
    )
    scale: Literal["group", "none"] = Field(
        "group",
        description="What an advantage is divided by: the deviation of the rewards in its group, "
        "or nothing (Liu et al. 2025).",
    )
    loss: Literal["grpo", "dapo", "dr_grpo"] = Field(
        "grpo",
        description="What the tokens' losses are divided by: grpo: the tokens of their reply; dapo "
        "(Yu et al. 2025): the tokens of the batch; dr_grpo (Liu et al. 2025): max_new_tokens.",
    )


class Grpo(Policy):
    """Group relative policy optimization; the KL to the reference is a term of the loss."""

    name: ClassVar[str] = "grpo"
    options_type: ClassVar[type[InstructOptions]] = GrpoOptions
    options: GrpoOptions

    @override
    def advantages(self, attempts: Sequence[Attempt]) -> dict[str, Array]:
        rewards = np.array([attempt.reward for attempt in attempts]).reshape(-1, self.options.group)
        each = group_advantages(rewards, scale=self.options.scale == "group").ravel()
        return {ADVANTAGE: by_action(each, attempts)}

    @override
    def objective(self, scores: ActionScores, targets: Mapping[str, Tensor]) -> Loss:
        old, options = targets[OLD], self.options
        losses = clipped_loss((scores.log_probs - old).exp(), targets[ADVANTAGE], options.clip)
        if options.beta:
            losses = losses + options.beta * k3(scores.log_probs - targets[REFERENCE])
        # Sum over tokens, each with its weight, and count what the sum is divided by.
        lengths, weights = of_replies(scores)
        if options.loss == "dapo":
            ones = torch.ones_like(weights)
            return Loss(losses.sum(), len(losses), self.changes(scores, old, ones))
        own = weights if options.loss == "grpo" else 1 / options.max_new_tokens
        return Loss((own * losses).sum(), len(lengths), self.changes(scores, old, weights))
