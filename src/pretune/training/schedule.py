"""The course of a run: the learning rate and the batch size of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from pretune.data.batch_order import DataOrder
from pretune.errors import RunError
from pretune.recipe.schema import TrainSection, Updates

#: Batches by tokens, and such as grow, are counted one by one: in so many epochs at most.
MOST = 10**5


def updates_of(value: Updates, total: int) -> int:
    """How many updates are meant: `value` itself, at most all; or that share of all if below 1."""
    return min(total, round(value * total) if value < 1 else int(value))


@dataclass(frozen=True)
class Schedule:
    """What the peak learning rate is multiplied by in each update.

    During the rise it is `(step + 1) / (warmup + 1)`, so that no update is wasted on a rate of 0;
    at `step == warmup` it is 1. After that, by `kind`:

    - `linear`: falls evenly, to `floor` at `step == total` (one past the last update).
    - `cosine`: half a period, to `floor` at `total` (Loshchilov & Hutter 2017, equation 5).
    - `constant`: stays.
    - `inverse_sqrt`: falls as `1 / sqrt(step + 1)` (Vaswani et al. 2017, equation 3, whose
      constant the peak rate replaces), never below `floor`; it does not depend on `total`.
    - `wsd` (warm-up, stable, decay; Hu et al. 2024, MiniCPM): stays, then falls evenly in the last
      `decay` updates, to `floor` at `total`; the even fall is that of Hägele et al. 2024.

    Attributes:
        kind: its name.
        total: all updates of the run.
        warmup: how many of them the rise takes.
        decay: how many of them the fall of `wsd` takes; where the rise leaves fewer, those.
        floor: the share of the peak it falls to.
    """

    kind: str
    total: int
    warmup: int = 0
    decay: int = 0
    floor: float = 0.0

    @classmethod
    def of(cls, options: TrainSection, total: int) -> Self:
        """The schedule of a run of `total` updates."""
        warmup = updates_of(options.warmup, total)
        return cls(options.schedule, total, warmup, updates_of(options.decay, total), options.floor)

    @property
    def fall(self) -> int:
        """The first update from which the rate may fall."""
        return max(self.warmup, self.total - self.decay) if self.kind == "wsd" else self.warmup

    def factor(self, step: int) -> float:
        """What the peak rate is multiplied by in update `step`, counted from 0.

        Raises:
            ValueError: no schedule is called `kind`.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, max(0, step - self.fall) / max(1, self.total - self.fall))
        if self.kind == "constant":
            return 1.0
        if self.kind == "inverse_sqrt":
            return max(self.floor, math.sqrt((self.warmup + 1) / (step + 1)))
        if self.kind in ("linear", "wsd"):
            left = 1.0 - done
        elif self.kind == "cosine":
            left = (1.0 + math.cos(math.pi * done)) / 2
        else:
            raise ValueError(f"no schedule is called '{self.kind}'")
        return self.floor + (1.0 - self.floor) * left


@dataclass(frozen=True)
class BatchSize:
    """How large the batch of each update is: constant, or growing evenly to the whole.

    Attributes:
        whole: examples, or tokens where the recipe gives `batch_tokens`.
        start: the first batch, in the same unit.
        updates: how many updates are smaller than the whole.
    """

    whole: int
    start: int
    updates: int = 0

    @classmethod
    def of(cls, options: TrainSection, total: int) -> Self:
        """The batch sizes of a run of `total` updates."""
        whole = options.batch_size or options.batch_tokens
        assert whole is not None  # noqa: S101 - the section checks that one is given
        ramp = options.batch_ramp
        if ramp is None:
            return cls(whole, whole)
        return cls(whole, ramp.start, updates_of(ramp.updates, total))

    def at(self, step: int) -> int:
        """The size in update `step`, counted from 0, rounded down."""
        if step >= self.updates:
            return self.whole
        return self.start + (self.whole - self.start) * step // self.updates


def planned_updates(order: DataOrder, options: TrainSection) -> tuple[int, BatchSize]:
    """How many updates a run has, and how large the batch of each is.

    A growing batch (`batch_ramp`) may grow over a share of all updates, whose number depends on
    how it grows: that share is of the updates there would be with whole batches.

    Raises:
        RunError: too many epochs, of batches that differ in number from epoch to epoch.
    """
    whole = BatchSize.of(options.model_copy(update={"batch_ramp": None}), 0)
    differ = options.batch_tokens is not None or options.batch_ramp is not None
    if options.max_steps is None and differ and options.epochs > MOST:
        raise RunError(
            f"train.epochs: the batches of {options.epochs:g} passes are too many to count, where "
            "train.batch_tokens or train.batch_ramp makes each pass another",
            f"At most {MOST:,}; or give train.max_steps.",
        )
    plain = options.max_steps or order.updates(options.epochs, whole.at)
    sizes = BatchSize.of(options, plain)
    if options.max_steps is not None or options.batch_ramp is None:
        return plain, sizes
    return order.updates(options.epochs, sizes.at, sizes.updates), sizes
