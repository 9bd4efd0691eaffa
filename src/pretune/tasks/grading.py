"""What an answer was worth, for people to look at and for figures that are drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EachLoss:
    """The loss of each example of a batch: a sum and a count each, never a mean.

    Attributes:
        sums: `[B]` without a graph: what is minimised, without label smoothing, z-loss and weights,
            which say nothing about the example.
        counts: `[B]`: over how many terms.
    """

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Decision:
    """One thing that an answer says, of which a probability is known.

    Attributes:
        confidence: the probability that the model gave to it.
        right: whether it was right.
        distribution: the probabilities of all that it could have said; empty where not known.
        said: which of these (0-based) it said; and
        truth: which would have been right.
    """

    confidence: float
    right: bool
    distribution: tuple[float, ...] = ()
    said: int = 0
    truth: int = 0


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with an answer.

    Attributes:
        kind: one of few, e.g. `boundary`, `missed`.
        detail: which of that kind, e.g. `PER`.
        confidence: how sure the model was of it; None where nobody knows.
        text: which part of the example it is about, for people; empty where it is all of it.
    """

    kind: str
    detail: str = ""
    confidence: float | None = None
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class Grade:
    """An answer beside the truth.

    Attributes:
        truth: what would have been right, as text; empty where there is nothing to say.
        answer: what the model said.
        right: whether it was right as a whole; None where that is no question.
        decisions: what the answer is made of, for calibration.
        mistakes: what is wrong with it.
        counts: `[K]` numbers that add up over examples, from which `Task.figures` has its figures.
    """

    truth: str = ""
    answer: str = ""
    right: bool | None = None
    decisions: tuple[Decision, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def confidence(self) -> float | None:
        """Of the decision that the model was least sure of; None where there is none."""
        return min((decision.confidence for decision in self.decisions), default=None)
