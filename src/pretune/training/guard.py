"""Watching the numbers: what is not finite, and losses far above the recent ones."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from pretune.recipe.train_section import GuardSection

#: The median absolute deviation of a normal distribution is its standard deviation over this.
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Trouble:
    """Why an update should not be made.

    Attributes:
        what: a sentence for people.
        finite: whether it is only a spike.
    """

    what: str
    finite: bool


def robust_z(value: float, recent: list[float]) -> float:
    """How many standard deviations a value lies above the median of others.

    The standard deviation is estimated by the median absolute deviation, which a few outliers do
    not move (Iglewicz & Hoaglin 1993, section 3.3). It is taken to be at least 2 % of the median:
    a loss that hardly moves is no reason to call a ripple a spike.
    """
    median = statistics.median(recent)
    spread = MAD_TO_SD * statistics.median(abs(x - median) for x in recent)
    return (value - median) / max(spread, 0.02 * abs(median), 1e-12)


class Guard:
    """Judges each update before it is made.

    Args:
        options: `train.guard`.
    """

    def __init__(self, options: GuardSection) -> None:
        self.options = options
        self.losses: deque[float] = deque(maxlen=options.window)
        self.streak = 0

    def judge(self, loss: float, norm: float) -> Trouble | None:
        """Whether an update may be made; counts spikes in a row.

        Args:
            loss: the mean of the batch.
            norm: of its mean gradient.
        """
        if not math.isfinite(loss):
            return Trouble(f"the loss is {loss}", finite=False)
        if not math.isfinite(norm):
            return Trouble(f"the gradient is {norm}", finite=False)
        # Few losses tell nothing about what is usual.
        if not self.options.watches_spikes or len(self.losses) < max(8, self.options.window // 4):
            return None
        z = robust_z(loss, list(self.losses))
        if z <= self.options.threshold:
            self.streak = 0
            return None
        self.streak += 1
        if self.streak < self.options.patience:
            return None
        usual = statistics.median(self.losses)
        return Trouble(
            f"the loss jumped to {loss:.4g}, where {usual:.4g} was usual "
            f"({z:.1f} standard deviations)",
            finite=True,
        )

    def accept(self, loss: float) -> None:
        """The update was made."""
        self.losses.append(loss)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"losses": list(self.losses), "streak": self.streak}

    def restore(self, values: dict[str, Any]) -> None:
        """Go back to what `to_dict` gave."""
        self.losses = deque(values["losses"], maxlen=self.options.window)
        self.streak = int(values["streak"])
