"""The schedule of a run: the learning rate and the batch size of each update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from pretune.data.batch_order import DataOrder
from pretune.errors import RunError
from pretune.recipe.schema import TrainSection, Updates

#: The most epochs whose batches are counted one by one, as batches by tokens and growing ones are.
MAX_COUNTED_EPOCHS = 10**5


def updates_of(value: Updates, total: int) -> int:
    """A number of updates: `value`, at most `total`; or below 1 that share of `total`."""
    return min(total, round(value * total) if value < 1 else int(value))


@dataclass(frozen=True)
class Schedule:
    """The factor of the peak learning rate in each update.

    In the warm-up it is `(step + 1) / (warmup + 1)`, so that no update is wasted on a rate of 0; at
    `step == warmup` it is 1. After that, by `kind`:

    - `linear`: falls linearly, to `floor` at `step == total` (one past the last update).
    - `cosine`: half a period, to `floor` at `total` (Loshchilov & Hutter 2017, equation 5).
    - `constant`: stays.
    - `inverse_sqrt`: falls as `1 / sqrt(step + 1)` (Vaswani et al. 2017, equation 3, whose
      constant the peak rate replaces), never below `floor`; it does not depend on `total`.
    - `wsd` (warm-up, stable, decay; Hu et al. 2024, MiniCPM): stays, then falls linearly in the
      last `decay` updates, to `floor` at `total`, as in Hägele et al. 2024.
    """

    kind: str
    total: int
    warmup: int = 0  # updates of the rise
    decay: int = 0  # updates of the fall of `wsd`, if the rise leaves that many
    floor: float = 0.0  # the lowest factor

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
        """The factor of the peak rate in update `step`, counted from 0."""
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
    """The batch size of each update: constant, or growing linearly to the full size."""

    whole: int  # in examples, or in tokens where the recipe gives `batch_tokens`
    start: int  # the first batch, in the same unit
    updates: int = 0  # updates until the batch is full

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
    """The number of updates of a run, and the batch size of each.

    A growing batch (`batch_ramp`) may grow over a share of all updates, whose number in turn
    depends on the growth. The share is taken of the updates there would be with full batches.

    Raises:
        RunError: too many epochs to count their batches, which differ from epoch to epoch.
    """
    whole = BatchSize.of(options.model_copy(update={"batch_ramp": None}), 0)
    differ = options.batch_tokens is not None or options.batch_ramp is not None
    if options.max_steps is None and differ and options.epochs > MAX_COUNTED_EPOCHS:
        raise RunError(
            f"train.epochs: the batches of {options.epochs:g} passes are too many to count, where "
            "train.batch_tokens or train.batch_ramp makes each pass another",
            f"At most {MAX_COUNTED_EPOCHS:,}; or give train.max_steps.",
        )
    steps = options.max_steps
    plain = order.updates(options.epochs, whole.at) if steps is None else steps
    sizes = BatchSize.of(options, plain)
    if options.max_steps is not None or options.batch_ramp is None:
        return plain, sizes
    return order.updates(options.epochs, sizes.at, sizes.updates), sizes
