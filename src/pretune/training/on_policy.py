"""Training on what the model itself writes: rollouts, and the order in which they are used.

An epoch is a pass over the prompts. They are cut into rollouts; to the prompts of a rollout the
model writes replies, which are scored and then trained on in several passes. All of that follows
from the seed, the place in the data and the weights, and the replies of the present rollout are
part of the run's state: a resumed run goes on in the middle of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.data.batch import Features, FeatureSet
from pretune.data.batch_order import Cursor, DataOrder, epoch_order
from pretune.errors import RunError
from pretune.inference.runtime import precision_context
from pretune.inference.strategies import Strategy
from pretune.tasks.base import AnyTask, MakesExperience, RolloutPlan
from pretune.training.distributed import World, is_sharded


class Rollout(NamedTuple):
    """A part of an epoch's prompts, with all passes over the replies to them."""

    number: int  # in its epoch
    begin: int  # the offset of its first example
    prompts: int
    replies: int  # to all of them: the examples of a pass

    def end(self, passes: int) -> int:
        """The offset behind its last example."""
        return self.begin + self.replies * passes


class RolloutOrder(DataOrder):
    """The order of the replies of each rollout, in a new order for each pass.

    Offsets count the examples of an epoch: N prompts times their replies times the passes. No batch
    goes beyond its pass. `take` gives numbers of replies within their rollout.

    Args:
        count: N, the number of prompts.
        plan: how they are cut into rollouts.
        seed: of the run.
    """

    def __init__(self, count: int, plan: RolloutPlan, *, seed: int) -> None:
        super().__init__(np.ones(count, dtype=np.int64), seed=seed)
        self._count, self._plan = count, plan

    @override
    def __len__(self) -> int:
        return self._count * self._plan.replies * self._plan.passes

    @override
    def take(self, cursor: Cursor, size: int) -> tuple[Array, Cursor]:
        rollout = self.rollout(cursor)
        turn, at = divmod(cursor.offset - rollout.begin, rollout.replies)
        numbers = epoch_order(rollout.replies, self.seed_of(cursor, 1), turn)
        return numbers[at : at + size], self._after(cursor, size)

    @override
    def _after(self, cursor: Cursor, size: int) -> Cursor:
        if size < 1:
            raise ValueError("a batch must have a positive size")
        rollout = self.rollout(cursor)
        turn, at = divmod(cursor.offset - rollout.begin, rollout.replies)
        end = rollout.begin + turn * rollout.replies + min(at + size, rollout.replies)
        return self._at(cursor.epoch, end)

    def rollout(self, cursor: Cursor) -> Rollout:
        """The rollout that a place is in."""
        plan = self._plan
        number = cursor.offset // (plan.prompts * plan.replies * plan.passes)
        prompts = min(plan.prompts, self._count - number * plan.prompts)
        begin = number * plan.prompts * plan.replies * plan.passes
        return Rollout(number, begin, prompts, prompts * plan.replies)

    def prompts(self, cursor: Cursor) -> Array:
        """The numbers of the prompts of the rollout that a place is in."""
        rollout, order = self.rollout(cursor), epoch_order(self._count, self._seed, cursor.epoch)
        first = rollout.number * self._plan.prompts
        return order[first : first + rollout.prompts]

    def following(self, cursor: Cursor) -> Cursor:
        """The place where the next rollout begins."""
        return self._at(cursor.epoch, self.rollout(cursor).end(self._plan.passes))

    def seed_of(self, cursor: Cursor, use: int = 0) -> int:
        """A seed for the rollout that a place is in; another `use`, another seed."""
        parts = [self._seed & (2**64 - 1), cursor.epoch, self.rollout(cursor).number, use]
        return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])

    def _at(self, epoch: int, offset: int) -> Cursor:
        return Cursor(epoch, offset) if offset < len(self) else Cursor(epoch + 1, 0)


class OnPolicy(Strategy):
    """Lets a task make its experience, rollout by rollout.

    The model stays in evaluation mode: with dropout the probability of a reply would be another
    when it is trained than when it was written.

    Raises:
        RunError: each process has only a shard of the model.
    """

    def __init__(
        self,
        task: AnyTask,
        model: nn.Module,
        prompts: Features,
        *,
        seed: int,
        device: torch.device,
        precision: str,
        world: World,
    ) -> None:
        super().__init__(task)
        assert isinstance(task, MakesExperience)  # noqa: S101 - for the type checker
        assert isinstance(prompts, FeatureSet)  # noqa: S101 - made of records, never of a corpus
        if is_sharded(model):
            raise RunError(
                "train.parallel=fsdp: the model writes its replies token by token, which takes the "
                "whole of it in each process",
                "Set train.parallel=ddp.",
            )
        self._maker, self._model, self._prompts = task, model, prompts
        self._device, self._precision, self._world = device, precision, world
        self._order = RolloutOrder(len(prompts), task.plan, seed=seed)
        self._held: tuple[int, int] | None = None  # epoch and number of the rollout that is there

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
        if batch_tokens is not None:
            raise RunError(
                "train.batch_tokens: how long replies are is known only when they are written",
                "Say how many replies a batch has: train.batch_size.",
            )
        plan = self._maker.plan
        if batch_size is not None and batch_size > plan.prompts * plan.replies:
            raise RunError(
                f"train.batch_size={batch_size}: a rollout has only {plan.prompts * plan.replies} "
                "replies",
                "Take smaller batches, or larger rollouts (task.rollout, task.group).",
            )
        return self._order

    @override
    def prepare(self, cursor: Cursor) -> None:
        self._model.eval()
        if self.holds(cursor):
            return
        # Each process writes replies to its share of the prompts, and all get all of them.
        which, size = self._order.prompts(cursor), self._world.size
        mine = which[self._world.rank :: size]
        attempts: list[Any] = []
        if len(mine):
            with torch.no_grad(), precision_context(self._device, self._precision):
                attempts = self._maker.attempt(
                    self._model, self._prompts, mine, self._order.seed_of(cursor)
                )
        shares = self._world.gather(attempts)
        # Back in the order of the prompts, so that what follows is the same for any number.
        k = self._maker.plan.replies
        ordered = [
            attempt
            for place in range(len(which))
            for attempt in shares[place % size][place // size * k : (place // size + 1) * k]
        ]
        self._examples = self._maker.experience(ordered)
        self._held = self._place(cursor)

    def _place(self, cursor: Cursor) -> tuple[int, int]:
        return cursor.epoch, self._order.rollout(cursor).number

    @override
    def holds(self, cursor: Cursor) -> bool:
        return self._held == self._place(cursor)

    @override
    def next(self, cursor: Cursor, means: Mapping[str, float]) -> Cursor:
        if self.holds(cursor) and self._maker.stops(means):
            return self._order.following(cursor)
        return cursor

    @override
    def state(self, gather: Callable[[Any], list[Any]]) -> dict[str, Tensor]:
        beta = torch.tensor([self._maker.beta], dtype=torch.float64)
        if self._held is None:
            return {"beta": beta}
        examples = self._examples
        assert isinstance(examples, FeatureSet)  # noqa: S101 - `prepare` made it
        arrays = {
            **{name: getattr(examples, name) for name in ("tokens", "starts", "records")},
            **{f"target.{name}": values for name, values in examples.targets.items()},
            "held": np.array(self._held, dtype=np.int64),
        }
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return {**tensors, "beta": beta}

    @override
    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._held = None
        self._maker.beta = float(tensors["beta"][0])
        if "held" not in tensors:
            return
        arrays = {name: values.cpu().numpy() for name, values in tensors.items()}
        targets = {
            name.removeprefix("target."): values
            for name, values in arrays.items()
            if name.startswith("target.")
        }
        self._examples = FeatureSet(
            tokens=arrays["tokens"],
            starts=arrays["starts"],
            segments=None,
            targets=targets,
            records=arrays["records"],
        )
        epoch, number = arrays["held"].tolist()
        self._held = epoch, number
