"""Truncated back-propagation through time: each batch goes on with the state after the one before.

Values flow from batch to batch through the state, gradients do not: they go back to the beginning
of the batch (Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of
recurrent network trajectories", section 4, with h = h' = the length of a block; for language
models Mikolov et al. 2010).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretune.data.arrays import Array
from pretune.data.batch import Features, PackedBatch
from pretune.data.batch_order import DataOrder, StreamOrder
from pretune.errors import RunError
from pretune.models.classics.common import ClassicLM, State
from pretune.recipe.train_section import TrainSection
from pretune.tasks.base import CarriesState, Head
from pretune.training.distributed import World


class Carry:
    """Runs a model on batches whose features may go on where those of earlier batches ended.

    States are kept by the number of the feature after which they are. So nobody has to know of
    streams, micro-batches or processes: feature i + 1 asks for the state after feature i, and
    begins with nothing where that is not there, as after a batch that was passed over.

    Args:
        task: runs the model.
        model: not wrapped.
        follows: `[N]` which features go on where the one before ended.
    """

    def __init__(self, task: CarriesState, model: ClassicLM, follows: Array) -> None:
        self._task, self._model, self.follows = task, model, follows
        self._left: tuple[list[int], State] | None = None
        self._new: list[tuple[list[int], State]] = []

    @classmethod
    def of(cls, task: Head, model: nn.Module, features: Features) -> Carry | None:
        """What carries the states of these features; None where they are read by themselves."""
        if not isinstance(task, CarriesState):
            return None
        follows = task.follows(model, features)
        if follows is None:
            return None
        assert isinstance(model, ClassicLM)  # noqa: S101 - for the type checker
        return cls(task, model, follows)

    def order(self, lengths: Array, options: TrainSection, seed: int) -> DataOrder:
        """The order of training: as many streams as a batch has examples.

        Raises:
            RunError: a batch that grows.
        """
        if options.batch_ramp is not None:
            raise RunError(
                "train.batch_ramp: the state of a stream is carried from batch to batch, so all "
                "batches need the same streams",
                "Leave it out, or read each block by itself: task.carry_state=false.",
            )
        streams = options.batch_size or (options.batch_tokens or 0) // int(lengths.max())
        return StreamOrder(lengths, self.follows, seed=seed, streams=max(1, streams))

    def forward(self, module: nn.Module, batch: PackedBatch, *, keep: bool = True) -> Any:
        """The task's outputs.

        Args:
            module: the model, or what wraps it.
            batch: where `index` says which features they are.
            keep: whether the states after it shall be known, once `commit` is called.
        """
        features = batch.index.tolist()
        outputs, after = self._task.carry(module, batch, self._before(features))
        if keep:
            self._new.append((features, after.detach()))
        return outputs

    def _before(self, features: list[int]) -> State:
        if self._left is None:
            return self._model.initial(len(features))
        numbers, state = self._left
        place = {number: row for row, number in enumerate(numbers)}
        nothing = len(numbers)
        rows = [place.get(i - 1, nothing) if self.follows[i] else nothing for i in features]
        return state.joined(self._model.initial(1)).select(rows)

    def commit(self) -> None:
        """What was run since the last time is done: the next batch goes on from there."""
        numbers: list[int] = []
        state: State | None = None
        for more, left in self._new:
            numbers += more
            state = left if state is None else state.joined(left)
        self._left = None if state is None else (numbers, state)
        self._new = []

    def drop(self) -> None:
        """What was run since the last `commit` does not count."""
        self._new = []

    def forget(self) -> None:
        """All begin with nothing."""
        self._left, self._new = None, []

    def state(self, world: World) -> dict[str, Tensor]:
        """The states that the next batch goes on from, of all processes, by name."""
        mine = None
        if self._left is not None:
            numbers, state = self._left
            mine = numbers, {name: value.cpu() for name, value in _tensors(state).items()}
        parts = [part for part in world.gather(mine) if part is not None]
        if not parts:
            return {}
        numbers = [number for found, _ in parts for number in found]
        joined = self._filled(parts[0][1])
        for _, tensors in parts[1:]:
            joined = joined.joined(self._filled(tensors))
        # In one order, whoever had them; where several have the same they are equal.
        known, first = np.unique(numbers, return_index=True)
        tensors = _tensors(joined.select(first.tolist()))
        return {**tensors, "after": torch.from_numpy(known)}

    def restore(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Go on from what `state` gave."""
        self.forget()
        if tensors:
            there = {name: value.to(device) for name, value in tensors.items() if name != "after"}
            self._left = tensors["after"].tolist(), self._filled(there)

    def _filled(self, tensors: dict[str, Tensor]) -> State:
        """A state of these tensors."""
        made: Any = self._model.initial(0)
        filled: State = replace(made, **tensors)
        return filled


def _tensors(state: State) -> dict[str, Tensor]:
    return {name: value for name, value in vars(state).items() if value is not None}
