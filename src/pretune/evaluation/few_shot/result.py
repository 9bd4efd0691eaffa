"""What came of asking a language model with examples in its prompt."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pretune.tasks.classification.classify import ClassificationMetrics

#: The share of what is no answer at all.
NO_ANSWER = "(none)"


@dataclass(frozen=True)
class Guess:
    """The answer to one question.

    Attributes:
        where: the row.
        truth: the right answer.
        answer: the one that was given; None where a text that was written has none.
        shots: how many examples were before the question.
        scores: of each answer; higher is better.
        text: what the model wrote, where that decides.
    """

    where: str
    truth: str
    answer: str | None
    shots: int
    scores: dict[str, float] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        shots: examples before each question, where there is room for them.
        seed: with which they were drawn.
        accuracy: share of right answers.
        macro_f1: mean of the F1 of each label that occurs or was answered.
        shares: of each answer, and of none.
        shortened: questions before which there was no room for all examples.
        fewest: the fewest examples before a question.
        guesses: the answer to each question.
    """

    shots: int
    seed: int
    accuracy: float
    macro_f1: float
    shares: dict[str, float]
    shortened: int
    fewest: int
    guesses: Sequence[Guess]


@dataclass(frozen=True)
class FewShotResult:
    """Measurements for numbers of shots and seeds.

    Attributes:
        template: how an example was written out.
        answers: the possible ones.
        score: how one was chosen.
        count: how many questions.
        truth: how often each answer is the right one.
        cells: the measurements.
    """

    template: str
    answers: tuple[str, ...]
    score: str
    count: int
    truth: Mapping[str, int]
    cells: Sequence[Cell]

    @property
    def majority(self) -> tuple[str, float]:
        """The most frequent right answer and the accuracy of always giving it."""
        answer = max(self.truth, key=lambda name: self.truth[name])
        return answer, self.truth[answer] / self.count

    def of_shots(self) -> dict[int, list[Cell]]:
        """The measurements by number of shots."""
        found: dict[int, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.shots, []).append(cell)
        return found

    def to_dict(self, *, predictions: bool = True) -> dict[str, Any]:
        """JSON-ready.

        Args:
            predictions: with the answer to each question.
        """
        cells = []
        for cell in self.cells:
            values = asdict(cell)
            guesses = values.pop("guesses")
            cells.append({**values, "predictions": guesses} if predictions else values)
        answer, accuracy = self.majority
        return {
            "template": self.template,
            "answers": list(self.answers),
            "score": self.score,
            "count": self.count,
            "majority": {"answer": answer, "accuracy": accuracy},
            "summary": {str(n): summary(found) for n, found in self.of_shots().items()},
            "cells": cells,
        }


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """Means over some measurements; the standard deviation of accuracy, 0 for a single one."""
    accuracy = [cell.accuracy for cell in cells]
    names = dict.fromkeys(name for cell in cells for name in cell.shares)
    return {
        "seeds": len(cells),
        "accuracy": statistics.mean(accuracy),
        "sd": statistics.stdev(accuracy) if len(cells) > 1 else 0.0,
        "macro_f1": statistics.mean(cell.macro_f1 for cell in cells),
        "shares": {
            name: statistics.mean(cell.shares.get(name, 0.0) for cell in cells) for name in names
        },
    }


def cell_of(shots: int, seed: int, guesses: Sequence[Guess], answers: Sequence[str]) -> Cell:
    """The figures of one measurement."""
    names = [*answers, NO_ANSWER]
    metrics = ClassificationMetrics(names)
    for guess in guesses:
        given = len(answers) if guess.answer is None else names.index(guess.answer)
        metrics.confusion[names.index(guess.truth), given] += 1
    given_counts = metrics.confusion.sum(0)
    per_class = metrics.details()["per_class"]
    f1 = [
        per_class[name]["f1"]
        for name, given in zip(answers, given_counts, strict=False)
        if given or per_class[name]["support"]
    ]
    shares = (given_counts / len(guesses)).tolist()
    return Cell(
        shots=shots,
        seed=seed,
        accuracy=metrics.result()["accuracy"],
        macro_f1=float(np.mean(f1)),
        shares={n: s for n, s in zip(names, shares, strict=True) if n != NO_ANSWER or s},
        shortened=sum(guess.shots < shots for guess in guesses),
        fewest=min(guess.shots for guess in guesses),
        guesses=guesses,
    )
