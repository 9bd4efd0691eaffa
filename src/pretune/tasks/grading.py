"""What an answer was worth: grades for people to look at and for figures over any examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pretune.data.batch import PackedBatch


@dataclass(frozen=True)
class EachLoss:
    """The loss of each example of a batch, as sums and counts.

    Label smoothing, z-loss and weights are left out: they say nothing about the example.
    """

    sums: Tensor  # `[B]`, without a graph
    counts: Tensor  # `[B]` terms in each sum


@dataclass(frozen=True)
class Decision:
    """One choice within an answer."""

    confidence: float  # the probability that the model gave to its choice
    right: bool
    distribution: tuple[float, ...] = ()  # of all possible choices; empty where unknown
    predicted: int = 0  # the number of the choice in `distribution`, from 0
    truth: int = 0  # the number of the right choice


@dataclass(frozen=True)
class Mistake:
    """One error in an answer."""

    kind: str  # e.g. `boundary` or `missed`; a task has few of them
    detail: str = ""  # a finer distinction within the kind, e.g. `PER`
    confidence: float | None = None  # the model's probability for its answer; None: unknown
    text: str = ""  # the part of the example that the error concerns; empty: all of it

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class Grade:
    """An answer compared with the truth, both as text."""

    truth: str = ""  # empty where there is nothing to compare
    answer: str = ""
    right: bool | None = None  # as a whole; None where the question makes no sense
    decisions: tuple[Decision, ...] = ()  # what makes up the answer, for calibration
    mistakes: tuple[Mistake, ...] = ()
    counts: tuple[float, ...] = ()  # `[K]`, whose sums over examples `Scorer.figures` takes

    @property
    def confidence(self) -> float | None:
        """The confidence of the least certain decision; None without decisions."""
        return min((decision.confidence for decision in self.decisions), default=None)


class TellsTruths(ABC):
    """Ability: says in plain values what a batch has for answers, and what is true.

    Where a task lacks it, functions get both as text, as reports show them, and objects of
    torchmetrics are refused.
    """

    @abstractmethod
    def answers_and_truths(
        self, outputs: Any, batch: PackedBatch
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the answer to each feature of a batch, and the truth, of the same type.

        The truth of a feature without a label is None.
        """

    @abstractmethod
    def scores_and_targets(self, outputs: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return what an object of torchmetrics takes: `preds` and `target`.

        Of one class of K `[B, K]` probabilities and `[B]` int64; of K labels `[B, K]` of both; of
        scores `[B]` float32 of both.
        """
