"""What an answer was worth, for people to look at and for figures that are drawn anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


@dataclass(frozen=True)
class EachLoss:
    """The loss of each sequence of a batch: a sum and a count each, never a mean.

    Attributes:
        sums: `[B]` without a graph: what is minimised, without label smoothing and z-loss, which
            say nothing about the example.
        counts: `[B]`: over how many terms.
    """

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Grade:
    """An answer beside the truth.

    Attributes:
        truth: what would have been right, as text; empty where there is nothing to say.
        answer: what the model said.
        right: whether it was right; None where that is no question.
        confidence: the probability it gave to its answer.
        mistakes: the kinds of mistakes in it, for people, e.g. `joy taken for love`.
        counts: `[K]` numbers that add up over examples, from which `Task.figures` has its figures.
    """

    truth: str = ""
    answer: str = ""
    right: bool | None = None
    confidence: float | None = None
    mistakes: tuple[str, ...] = ()
    counts: tuple[float, ...] = ()
