"""`rloo`: REINFORCE over whole replies, each compared with the mean of the others to its prompt
(Ahmadian et al. 2024, "Back to basics", section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.errors import WrongValueError
from pretune.tasks.alignment.aligned import ActionScores, sums_of_replies
from pretune.tasks.alignment.policy import (
    ADVANTAGE,
    OLD,
    Attempt,
    Policy,
    PolicyOptions,
    by_action,
    of_replies,
)
from pretune.tasks.alignment.policy_losses import clipped_loss, leave_one_out
from pretune.tasks.base import Loss
from pretune.tasks.dialogue.dialogue import InstructOptions


class RlooOptions(PolicyOptions):
    """Options of `rloo`."""

    name: Literal["rloo"] = Field(  # type: ignore[assignment]
        "rloo", description="Replies, learned from rewards above those of the other replies."
    )
    group: int = Field(4, ge=2, description="Replies to each prompt, which are compared.")
    loss: Literal["reinforce", "clipped"] = Field(
        "reinforce",
        description="reinforce; or clipped: as PPO's, with the ratio of the whole reply.",
    )

    @model_validator(mode="after")
    def _one_pass(self) -> Self:
        if self.passes > 1 and self.loss == "reinforce":
            raise WrongValueError(
                "the loss reinforce is right for replies of the model as it is: for more passes "
                "than 1 set loss to clipped"
            )
        return self


class Rloo(Policy):
    """REINFORCE leave-one-out; the KL to the reference is a part of the reward."""

    name: ClassVar[str] = "rloo"
    options_type: ClassVar[type[InstructOptions]] = RlooOptions
    options: RlooOptions

    @override
    def advantages(self, attempts: Sequence[Attempt]) -> dict[str, Array]:
        rewards = np.array([a.reward - self.beta * a.kl for a in attempts])
        each = leave_one_out(rewards.reshape(-1, self.options.group)).ravel()
        return {ADVANTAGE: by_action(each, attempts)}

    @override
    def objective(self, scores: ActionScores, targets: Mapping[str, Tensor]) -> Loss:
        # Of whole replies: their log-probability, and the advantage, which their tokens share.
        lengths, weights = of_replies(scores)
        new, old, advantages = (
            sums_of_replies(values, scores)
            for values in (scores.log_probs, targets[OLD], weights * targets[ADVANTAGE])
        )
        if self.options.loss == "clipped":
            losses = clipped_loss((new - old).exp(), advantages, self.options.clip)
        else:
            losses = -advantages * new
        return Loss(losses.sum(), len(lengths), self.changes(scores, targets[OLD], weights))
