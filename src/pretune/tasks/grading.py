"""What an answer was worth: grades for people to look at and for figures over any examples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EachLoss:
    """The loss of each example of a batch, as sums and counts.

    Attributes:
        sums: `[B]` without a graph: what is minimised, but without label smoothing, z-loss and
            weights, which say nothing about the example.
        counts: `[B]` the number of terms in each sum.
    """

    sums: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Decision:
    """One choice within an answer, with its probability.

    Attributes:
        confidence: the probability that the model gave to its choice.
        right: whether the choice was right.
        distribution: the probabilities of all possible choices; empty where they are unknown.
        predicted: the number of the choice in `distribution`, from 0.
        truth: the number of the right choice.
    """

    confidence: float
    right: bool
    distribution: tuple[float, ...] = ()
    predicted: int = 0
    truth: int = 0


@dataclass(frozen=True)
class Mistake:
    """One error in an answer.

    Attributes:
        kind: the kind of error, e.g. `boundary` or `missed`; a task has few of them.
        detail: a finer distinction within the kind, e.g. `PER`.
        confidence: the model's probability for what it answered; None where unknown.
        text: the part of the example that the error concerns; empty for all of it.
    """

    kind: str
    detail: str = ""
    confidence: float | None = None
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class Grade:
    """An answer compared with the truth.

    Attributes:
        truth: the right answer as text; empty where there is nothing to compare.
        answer: the model's answer as text.
        right: whether the answer as a whole is right; None where the question makes no sense.
        decisions: the choices that make up the answer, for calibration.
        mistakes: the errors in the answer.
        counts: `[K]` numbers from whose sums over examples `Scorer.figures` computes its figures.
    """

    truth: str = ""
    answer: str = ""
    right: bool | None = None
    decisions: tuple[Decision, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def confidence(self) -> float | None:
        """The confidence of the least certain decision; None without decisions."""
        return min((decision.confidence for decision in self.decisions), default=None)
