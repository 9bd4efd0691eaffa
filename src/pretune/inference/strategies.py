"""How a model is run over features: each batch by itself, or from the state the one before left.

Training, evaluation and prediction run a model through a `Strategy` and do not know which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Features, PackedBatch
from pretune.data.batch_order import (
    Cursor,
    DataOrder,
    StreamOrder,
    batches_by_length,
    batches_in_turn,
)
from pretune.errors import RunError
from pretune.models.language_model import RecurrentState, StatefulLM
from pretune.tasks.base import CarriesState, Head


def strategy_for(task: Head, model: nn.Module, features: Features) -> Strategy:
    """The way to run a model over these features."""
    if not isinstance(task, CarriesState):
        return Strategy(task, features)
    follows = task.follows(model, features)
    if follows is None:
        return Strategy(task, features)
    assert isinstance(model, StatefulLM)  # noqa: S101 - for the type checker
    return TruncatedBptt(task, model, follows, features)


class Strategy:
    """Runs each batch by itself: nothing is left over from one to the next."""

    def __init__(self, task: Head, examples: Features | None = None) -> None:
        self.task = task
        self._examples = examples

    @property
    def examples(self) -> Features:
        """What the numbers of the order stand for: in training the features it was made for."""
        assert self._examples is not None  # noqa: S101 - a strategy that trains has some
        return self._examples

    def prepare(self, cursor: Cursor) -> None:
        """Make the examples that are trained on from this place, where they are not there yet."""

    def holds(self, cursor: Cursor) -> bool:
        """Whether the examples at this place are there, so that a batch can be made of them."""
        return True

    def next(self, cursor: Cursor, means: Mapping[str, float]) -> Cursor:
        """Return where training goes on after an update.

        Args:
            cursor: the place behind the update's batch.
            means: of the parts of the loss, by name.
        """
        return cursor

    def order(
        self,
        lengths: Array,
        seed: int,
        *,
        batch_size: int | None,
        batch_tokens: int | None,
        grows: bool,
    ) -> DataOrder:
        """The order to train on features of these lengths `[N]`, in tokens."""
        return DataOrder(lengths, seed=seed, in_tokens=batch_tokens is not None)

    def batches(self, lengths: Array, batch_tokens: int, processes: int = 1) -> list[list[Array]]:
        """The batches of each process, in running order; none has more than the first process."""
        batches = batches_by_length(lengths, batch_tokens)
        return [batches[rank::processes] for rank in range(processes)]

    def forward(self, module: nn.Module, batch: PackedBatch, *, keep: bool = True) -> Any:
        """Run the model on a batch; the state after a stand-in (`keep=False`) is not remembered."""
        return self.task.forward(module, batch)

    def begin_epoch(self) -> None:
        """Forget every state: all sequences start afresh."""

    def commit(self) -> None:
        """Accept the batches run since the last commit: the next ones continue from there."""

    def discard(self) -> None:
        """Drop what was run since the last commit, e.g. because the update was not made."""

    def state(self, gather: Callable[[Any], list[Any]]) -> dict[str, Tensor]:
        """What a resumed run needs to continue, by name."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue from what `state` returned."""


class TruncatedBptt(Strategy):
    """Truncated back-propagation through time: each batch starts from the state before it.

    Values flow from batch to batch through the state; gradients stop at the beginning of the batch
    (Williams & Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories", section 4, with h = h' = the length of a block; for language models
    Mikolov et al. 2010).

    States are looked up by the number of the feature they come after. So streams, micro-batches and
    processes need no bookkeeping: feature i + 1, if `follows[i + 1]` (`[N]` bool), asks for the
    state after feature i, and starts afresh where there is none, as after a batch that was skipped.
    """

    def __init__(
        self, task: Head, model: StatefulLM, follows: Array, examples: Features | None = None
    ) -> None:
        super().__init__(task, examples)
        assert isinstance(task, CarriesState)  # noqa: S101 - for the type checker
        self._carry = task.carry
        self._model, self._follows = model, follows
        # Numbers of features, and the states after them: committed, and run since then.
        self._committed: tuple[list[int], RecurrentState] | None = None
        self._pending: list[tuple[list[int], RecurrentState]] = []

    @override
    def order(
        self,
        lengths: Array,
        seed: int,
        *,
        batch_size: int | None,
        batch_tokens: int | None,
        grows: bool,
    ) -> DataOrder:
        if grows:
            raise RunError(
                "train.batch_ramp: the state of each stream carries over from batch to batch, so "
                "all batches need the same streams",
                "Leave it out, or read each block by itself: task.carry_state=false.",
            )
        # As many streams as a batch has examples.
        streams = batch_size or (batch_tokens or 0) // int(lengths.max())
        return StreamOrder(lengths, self._follows, seed=seed, streams=max(1, streams))

    @override
    def batches(self, lengths: Array, batch_tokens: int, processes: int = 1) -> list[list[Array]]:
        # Every text is read from its beginning by one process, so that figures depend neither on
        # how texts were cut into blocks nor on how much is read at a time.
        groups = batches_in_turn(lengths, self._follows, batch_tokens)
        return [list(chain.from_iterable(groups[rank::processes])) for rank in range(processes)]

    @override
    def forward(self, module: nn.Module, batch: PackedBatch, *, keep: bool = True) -> Any:
        features = batch.index.tolist()
        outputs, after = self._carry(module, batch, self._before(features))
        if keep:
            self._pending.append((features, after.detach()))
        return outputs

    def _before(self, features: list[int]) -> RecurrentState:
        """The state that each of these features starts from."""
        if self._committed is None:
            return self._model.initial(len(features))
        numbers, state = self._committed
        row_of = {number: row for row, number in enumerate(numbers)}
        fresh = len(numbers)  # the row of the initial state, behind those that are known
        rows = [row_of.get(i - 1, fresh) if self._follows[i] else fresh for i in features]
        return state.joined(self._model.initial(1)).select(rows)

    @override
    def begin_epoch(self) -> None:
        self._committed, self._pending = None, []

    @override
    def commit(self) -> None:
        numbers: list[int] = []
        state: RecurrentState | None = None
        for features, after in self._pending:
            numbers += features
            state = after if state is None else state.joined(after)
        self._committed = None if state is None else (numbers, state)
        self._pending = []

    @override
    def discard(self) -> None:
        self._pending = []

    @override
    def state(self, gather: Callable[[Any], list[Any]]) -> dict[str, Tensor]:
        mine = None
        if self._committed is not None:
            numbers, state = self._committed
            mine = numbers, {name: value.cpu() for name, value in _tensors(state).items()}
        parts = [part for part in gather(mine) if part is not None]
        if not parts:
            return {}
        # One state with the rows of all processes.
        numbers = [number for features, _ in parts for number in features]
        joined = self._filled(parts[0][1])
        for _, tensors in parts[1:]:
            joined = joined.joined(self._filled(tensors))
        # Sorted by feature, so that files do not depend on which process had which. A feature that
        # several processes ran has the same state in all of them.
        after, first = np.unique(numbers, return_index=True)
        return {**_tensors(joined.select(first.tolist())), "after": torch.from_numpy(after)}

    @override
    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.begin_epoch()
        if tensors:
            state = {name: value.to(device) for name, value in tensors.items() if name != "after"}
            self._committed = tensors["after"].tolist(), self._filled(state)

    def _filled(self, tensors: Mapping[str, Tensor]) -> RecurrentState:
        """Make a state of the model's kind from its tensors."""
        empty: Any = self._model.initial(0)
        filled: RecurrentState = replace(empty, **tensors)
        return filled


def _tensors(state: RecurrentState) -> dict[str, Tensor]:
    return {name: value for name, value in vars(state).items() if value is not None}
