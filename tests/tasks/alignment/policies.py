"""Small policies, prompts, and rewards for what they write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretune.bundle.bundle import Bundle, load
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.inference.rewards import RewardTerm, SummedReward
from pretune.recipe.schema import TrainSection
from pretune.tasks.alignment.grpo import Grpo, GrpoOptions
from pretune.tasks.alignment.policy import Attempt, Policy
from pretune.tasks.alignment.ppo import Ppo, PpoOptions
from pretune.tasks.alignment.rloo import Rloo, RlooOptions
from pretune.tasks.base import RewardFunction
from pretune.tasks.features import record_features
from pretune.training.loop import Trainer
from tests.tasks.alignment.preferences import ROWS, records

CPU = torch.device("cpu")
TASKS: dict[str, Any] = {"ppo": (Ppo, PpoOptions), "grpo": (Grpo, GrpoOptions)}
TASKS["rloo"] = (Rloo, RlooOptions)
SMALL = {"max_length": 64, "max_new_tokens": 6, "rollout": 4, "group": 2}


def by_length(
    prompts: Sequence[str], replies: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[float]:
    """A reward that differs from reply to reply."""
    return [len(reply) / 10 - reply.count("e") for reply in replies]


def summed(*functions: RewardFunction) -> SummedReward:
    """A reward by functions, as a recipe makes it."""
    terms = [RewardTerm(f"part {i}", "a function", f) for i, f in enumerate(functions)]
    return SummedReward(terms)


def policy(name: str, folder: Path, **options: Any) -> tuple[Policy, Bundle]:
    """A policy on the model in a folder, its reference another one, if it has one."""
    kind, options_type = TASKS[name]
    task = kind(options_type(**{**SMALL, **options}))
    torch.manual_seed(0)
    bundle = load(folder, task=task, dropout=0.0, mmap=False)
    if task.reference is not None:
        task.reference_model = load(folder, task=kind(task.options), mmap=False).model.eval()
        with torch.no_grad():
            for parameter in task.reference_model.parameters():
                parameter.mul_(0.97)
    task.rewarding = summed(by_length)
    return task, bundle


def prompts(task: Policy, bundle: Bundle, rows: list[dict[str, Any]] = ROWS) -> FeatureSet:
    """The prompts of some rows."""
    return record_features(task, records(task, rows), bundle.tokenizer)


def attempts(task: Policy, bundle: Bundle, count: int = 4) -> list[Attempt]:
    """A rollout."""
    made = prompts(task, bundle)
    with torch.no_grad():
        written: list[Attempt] = task.attempt(bundle.model.eval(), made, np.arange(count), 1)
    return written


def rollout(task: Policy, bundle: Bundle) -> PackedBatch:
    """All of a rollout as one batch."""
    made = task.experience(attempts(task, bundle))
    return made.batch(np.arange(len(made)))


def trainer(task: Policy, bundle: Bundle, made: FeatureSet, **options: Any) -> Trainer:
    """A trainer with these options of the recipe."""
    usual = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0}
    section = TrainSection(**{**usual, **options})
    return Trainer(task, bundle.model, made, options=section, device=CPU)


def gradient(model: torch.nn.Module, of: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    """The gradient of a scalar by the backbone's parameters."""
    model.zero_grad()
    of().backward()  # type: ignore[no-untyped-call]
    return [
        p.grad.clone() for p in model.get_submodule("backbone").parameters() if p.grad is not None
    ]
