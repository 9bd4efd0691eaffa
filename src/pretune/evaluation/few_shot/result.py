"""Results of asking a language model with examples in its prompt."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pretune.tasks.classification.classify import ClassificationMetrics

#: The name in `Cell.shares` of texts that are none of the answers.
NO_ANSWER = "(none)"


@dataclass(frozen=True)
class Guess:
    """The answer to one question."""

    where: str
    truth: str
    answer: str | None  # None if the written text begins with no answer
    shots: int
    scores: dict[str, float] = field(default_factory=dict)  # higher is better
    text: str | None = None


@dataclass(frozen=True)
class Cell:
    """One measurement: a number of shots with one draw of examples."""

    shots: int  # examples before each question, if there is room
    seed: int
    accuracy: float
    macro_f1: float  # mean F1 of the labels that occur or were answered
    shares: dict[str, float]  # of each answer; `NO_ANSWER` if it occurs
    shortened: int  # questions without room for all examples
    fewest: int  # fewest examples before a question
    guesses: Sequence[Guess]


@dataclass(frozen=True)
class FewShotResult:
    """All measurements, for each number of shots and each seed.

    Attributes:
        template: the text of an example.
        answers: the possible answers.
        score: how an answer was chosen.
        count: the number of questions.
        truth: how often each answer is right.
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
        """Group the measurements by number of shots."""
        groups: dict[int, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.shots, []).append(cell)
        return groups

    def to_dict(self, *, predictions: bool = True) -> dict[str, Any]:
        """Convert to plain values for JSON, with the answer to each question if `predictions`."""
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
            "summary": {str(n): summary(cells) for n, cells in self.of_shots().items()},
            "cells": cells,
        }


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """Average measurements; `sd` is the standard deviation of the accuracy, 0 for a single one."""
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
    """Compute the figures of one measurement."""
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
