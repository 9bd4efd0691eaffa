"""The state of a run: everything that a resumed run needs to continue as if nothing had happened.

A state is tensors by name and JSON values by name: two files, neither of them a pickle.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pretune.training.distributed import World, assign
from pretune.training.validation import Evaluation


@dataclass
class TrainingState:
    """The part of a checkpoint that is not the model."""

    # Optimizer moments, averaged or raw weights, generators.
    tensors: dict[str, Tensor] = field(default_factory=dict)
    # JSON-ready: counters, history, the place in the data.
    values: dict[str, Any] = field(default_factory=dict)
    shards: Path | None = None  # a folder with the tensors that were sharded over processes

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with a prefix, by their names without it."""
        named = self.tensors.items()
        return {k.removeprefix(prefix): tensor for k, tensor in named if k.startswith(prefix)}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the values of these names into tensors, sharded or not."""
        if self.shards is not None:
            from pretune.training.sharded import read_shards  # slow to import

            read_shards(self.shards, tensors)
            return
        for name, target in tensors.items():
            assign(target, self.tensors[name])


@dataclass
class SavedCheckpoint:
    """A checkpoint that was read back."""

    place: str  # where it lies, for people
    weights: dict[str, Tensor]  # of the model, by parameter name
    state: TrainingState


class CheckpointStore:
    """Where checkpoints are written to and read back from; this one, in memory, keeps none."""

    def save(self, step: int, state: TrainingState, *, best: bool) -> None:
        """Keep the model as it is now, with the state of the run."""

    def flush(self) -> None:
        """Wait until everything is written."""

    def newest(self, at_most: int | None = None) -> SavedCheckpoint | None:
        """The newest checkpoint that is whole, preferably of at most `at_most` updates."""
        return None


@dataclass
class TrainingHistory:
    """What has happened in a run so far."""

    steps: int = 0  # updates done
    tokens: int = 0  # trained on, over all epochs
    examples: int = 0  # sequences trained on, over all epochs
    seconds: float = 0.0  # spent in training steps, evaluation and saving not counted
    # (step, epoch, metrics) of each.
    evaluations: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    best_step: int | None = None  # the update after which the model was best
    best: Evaluation | None = None
    # Before the first update, where the task is evaluated then.
    before: Evaluation | None = None
    # What the guard did, one sentence per recovery.
    rescues: list[str] = field(default_factory=list)
    early: bool = False  # ends because nothing got better any more, or a callback asked for it
    # The figure that ended the run: `figure`, `value`, `limit` and `step`.
    stopped_on: dict[str, Any] | None = None
    # What looked wrong, one sentence each.
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a history from what `to_dict` gave."""
        known = dict(values)
        for name in ("best", "before"):
            if known.get(name) is not None:
                known[name] = Evaluation(**known[name])
        known["evaluations"] = [(step, epoch, dict(m)) for step, epoch, m in known["evaluations"]]
        return cls(**known)

    def add_update(self, tokens: int, examples: int, seconds: float) -> None:
        """Count an update."""
        self.steps += 1
        self.tokens += tokens
        self.examples += examples
        self.seconds += seconds

    @property
    def ended(self) -> bool:
        """Whether the run ends before its last update."""
        return self.early or self.stopped_on is not None

    @property
    def evaluated(self) -> int | None:
        """The update after which the last evaluation was; None before the first."""
        return self.evaluations[-1][0] if self.evaluations else None

    @property
    def evaluations_since_best(self) -> int:
        """The number of evaluations since the best one."""
        if self.best_step is None:
            return len(self.evaluations)
        return sum(step > self.best_step for step, _, _ in self.evaluations)


@dataclass
class LogSums:
    """What was summed up since the last entry of the log."""

    sum: float = 0.0  # of the loss
    count: int = 0  # of the loss: examples or tokens
    tokens: int = 0
    seconds: float = 0.0  # spent in updates
    parts: dict[str, float] = field(default_factory=dict)  # sums of the loss's parts

    def add(
        self, loss: float, count: int, parts: Mapping[str, float], tokens: int, seconds: float
    ) -> None:
        """Take in an update."""
        self.sum += loss
        self.count += count
        self.tokens += tokens
        self.seconds += seconds
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value


def generators() -> TrainingState:
    """The states of all random generators: torch's (CPU and CUDA), numpy's and Python's."""
    kind, keys, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the global one
    version, words, pending = random.getstate()
    # What is long becomes a tensor, the rest JSON.
    tensors = {
        "generator.torch": torch.get_rng_state(),
        "generator.numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "generator.python": torch.tensor(words, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        for i, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"generator.cuda.{i}"] = state
    numpy = [kind, int(place), int(has_gauss), float(gauss)]
    return TrainingState(tensors, {"numpy": numpy, "python": [version, pending]})


def restore_generators(state: TrainingState) -> None:
    """Set all random generators to states that `generators` gave."""
    torch.set_rng_state(state.tensors["generator.torch"])
    kind, place, has_gauss, gauss = state.values["numpy"]
    keys = state.tensors["generator.numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, place, has_gauss, gauss))  # noqa: NPY002
    version, pending = state.values["python"]
    random.setstate((version, tuple(state.tensors["generator.python"].tolist()), pending))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if (known := state.tensors.get(f"generator.cuda.{i}")) is not None:
                torch.cuda.set_rng_state(known, i)


def all_generators(world: World) -> TrainingState:
    """The states of the generators of every process."""
    if world.size == 1:
        return generators()
    together = TrainingState()
    for rank, state in enumerate(world.gather(generators())):
        together.tensors |= {f"rank{rank}.{name}": value for name, value in state.tensors.items()}
        together.values[f"rank{rank}"] = state.values
    return together


def restore_all_generators(state: TrainingState, world: World, seed: int) -> None:
    """Set this process's generators to the states that `all_generators` gave.

    With another number of processes than then, each draws new numbers: a function of the seed, the
    process and the step.
    """
    known = sum(name.startswith("rank") for name in state.values) or 1
    if known != world.size:
        seed_process(seed, world, int(state.values["course"]["steps"]))
    elif world.size == 1:
        restore_generators(state)
    else:
        own = f"rank{world.rank}"
        restore_generators(TrainingState(state.under(f"{own}."), state.values[own]))


def seed_process(seed: int, world: World, steps: int = 0) -> None:
    """Seed this process so that its dropout differs from that in other processes."""
    mixed = np.random.SeedSequence([seed, world.rank, world.size, steps])
    seed_everything(int(mixed.generate_state(1, np.uint64)[0] >> 1))


def seed_everything(seed: int) -> None:
    """Seed the generators of new weights and dropout; the data order needs none."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still use it
    torch.manual_seed(seed)
