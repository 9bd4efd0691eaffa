"""How well any number of labels is given, and from which probability on."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from torch import Tensor

from pretune.data.arrays import Array
from pretune.data.batch import PackedBatch


class MultilabelMetrics:
    """Thresholds need all probabilities at once, so all are kept: 5 bytes a decision.

    Args:
        labels: K names.
        thresholds: from which probability each label is given.
    """

    def __init__(self, labels: list[str], thresholds: list[float]) -> None:
        self.labels, self.thresholds = labels, thresholds
        self._scores: list[Array] = []
        self._truth: list[Array] = []

    def update(self, outputs: Tensor, batch: PackedBatch) -> None:
        """Take in one batch of logits `[B, K]`."""
        self._scores.append(outputs.float().sigmoid().cpu().numpy())
        self._truth.append(batch.targets["labels"].bool().cpu().numpy())

    def merge(self, other: Self) -> None:
        """Take in another's."""
        self._scores += other._scores
        self._truth += other._truth

    def _all(self) -> tuple[Array, Array]:
        none = np.empty((0, len(self.labels)))
        scores = np.concatenate([none, *self._scores])  # float64, in which thresholds are
        return scores, np.concatenate([none.astype(bool), *self._truth])

    def best_thresholds(self) -> list[float]:
        """For each label the threshold with the best F1 on what was seen."""
        scores, truth = self._all()
        return [best_threshold(scores[:, i], truth[:, i]) for i in range(len(self.labels))]

    def _counts(self) -> tuple[Array, Array, Array, float]:
        """`[K]` right, given and true ones; and the share of examples that are right as a whole."""
        scores, truth = self._all()
        guess = scores >= np.asarray(self.thresholds)
        exact = float((guess == truth).all(1).mean()) if len(truth) else 0.0
        return (guess & truth).sum(0), guess.sum(0), truth.sum(0), exact

    def result(self) -> dict[str, float]:
        """F1 over all decisions, the mean of the labels' F1, and the share of examples whose
        labels are all right; what is undefined is 0, as in scikit-learn."""
        right, given, true, exact = self._counts()
        figures = decision_figures(right, given, true)
        return {**{name: float(value) for name, value in figures.items()}, "exact_match": exact}

    def details(self) -> dict[str, Any]:
        """The figures of each label, with its threshold."""
        right, given, true, _ = self._counts()
        return {
            "per_class": {
                label: {
                    "precision": float(right[i] / max(given[i], 1)),
                    "recall": float(right[i] / max(true[i], 1)),
                    "f1": float(2 * right[i] / max(given[i] + true[i], 1)),
                    "support": int(true[i]),
                    "threshold": self.thresholds[i],
                }
                for i, label in enumerate(self.labels)
            }
        }


def decision_figures(right: Array, given: Array, true: Array) -> dict[str, Array]:
    """Micro and macro F1 of counts `[..., K]`."""
    micro = 2 * right.sum(-1) / np.maximum(given.sum(-1) + true.sum(-1), 1)
    macro = (2 * right / np.maximum(given + true, 1)).mean(-1)
    return {"micro_f1": micro, "macro_f1": macro}


def best_threshold(scores: Array, truth: Array) -> float:
    """The threshold that gives the best F1 when all scores from it on are a yes.

    0.5 where that is as good as any, or nothing is true; else the middle between two scores.

    Args:
        scores: `[N]` probabilities.
        truth: `[N]` bool.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    lower = np.append(scores[1:], 0.0)
    # A yes for the first k and no more: only where the next score is another.
    ends = np.flatnonzero(np.append(scores[:-1] > scores[1:], True))
    f1 = 2 * np.cumsum(truth)[ends] / (ends + 1 + truth.sum())
    ends = ends[f1 == f1.max()]
    within = (scores[ends] >= 0.5) & (lower[ends] < 0.5)
    places = np.where(within, 0.5, (scores[ends] + lower[ends]) / 2)
    return float(places[np.argmin(np.abs(places - 0.5))])
