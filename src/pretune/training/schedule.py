"""The learning rate over a run: a linear rise, then a fall to a floor."""

from __future__ import annotations

import math


def warmup_updates(warmup: float, total: int) -> int:
    """How many updates the rise takes: `warmup` itself, or that share of `total` if below 1."""
    return min(total, round(warmup * total) if warmup < 1 else int(warmup))


def rate_factor(step: int, total: int, warmup: int, schedule: str, floor: float = 0.0) -> float:
    """What the peak learning rate is multiplied by in one update.

    During the rise it is `(step + 1) / (warmup + 1)`, so that no update is wasted on a rate of 0;
    at `step == warmup` it is 1, and at `step == total` it would be `floor`.

    Args:
        step: the update, counted from 0.
        total: all updates of the run.
        warmup: how many of them the rise takes.
        schedule: "linear", "cosine" (half a period; Loshchilov & Hutter 2017, equation 5) or
            "constant".
        floor: the share of the peak it falls to.

    Raises:
        ValueError: no such schedule.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        left = 1.0 - done
    elif schedule == "cosine":
        left = (1.0 + math.cos(math.pi * done)) / 2
    else:
        raise ValueError(f"no schedule is called '{schedule}'")
    return floor + (1.0 - floor) * left
