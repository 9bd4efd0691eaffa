"""Confident learning: which labels of a data set may be wrong.

Northcutt, Jiang & Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
Journal of Artificial Intelligence Research 70 (arXiv:1911.00068). The probabilities have to come
from a model that did not learn from the very labels that are judged: validation data, or the
out-of-fold answers of a cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretune.data.arrays import Array
from pretune.tasks.grading import Grade


@dataclass(frozen=True)
class LabelErrors:
    """What confident learning says of N labels of K classes.

    Attributes:
        thresholds: `[K]` the mean probability of a class over the examples that are labelled with
            it (equation 2); infinite for a class that no example is labelled with.
        counts: `[K, K]` int64, the confident joint (equation 1): examples labelled i (rows) that
            are confidently of class j.
        joint: `[K, K]` the estimated share of all examples that are labelled i and are of class j
            (equation 3).
        suggested: `[N]` int64: the class that an example confidently is of; its label where it is
            of none.
        confidence: `[N]` the probability of the given label (self-confidence).
        margin: `[N]` that probability minus the highest of the other classes, from -1 to 1.
    """

    thresholds: Array
    counts: Array
    joint: Array
    given: Array
    suggested: Array
    confidence: Array
    margin: Array

    @property
    def suspects(self) -> list[int]:
        """The numbers of the examples off the diagonal of the confident joint, the worst first."""
        off = np.flatnonzero(self.suggested != self.given)
        return [int(i) for i in off[np.argsort(self.margin[off], kind="stable")]]

    @property
    def wrong_share(self) -> float:
        """The estimated share of wrong labels: the joint off its diagonal."""
        return float(self.joint.sum() - np.trace(self.joint))

    def columns(self, number: int, labels: Sequence[str]) -> dict[str, Any]:
        """Return columns of a table: `label_quality`, `label_issue` and `suggested_label`.

        Args:
            number: of the example.
            labels: the names of the classes.
        """
        issue = bool(self.suggested[number] != self.given[number])
        return {
            "label_quality": float(self.confidence[number]),
            "label_issue": issue,
            "suggested_label": labels[int(self.suggested[number])] if issue else None,
        }


def find_label_errors(probabilities: Array, given: Array) -> LabelErrors:
    """Find labels that may be wrong.

    Args:
        probabilities: `[N, K]` of each class, by a model that did not learn from these labels.
        given: `[N]` int64: the label of each example.
    """
    count, classes = probabilities.shape
    own = probabilities[np.arange(count), given]
    # Equation 2: a class is confident from the mean self-confidence of its examples on.
    labelled = np.bincount(given, minlength=classes)
    sums = np.bincount(given, weights=own, minlength=classes)
    thresholds = np.where(labelled > 0, sums / np.maximum(labelled, 1), np.inf)
    # Equation 1: of the classes above their thresholds the most probable one, if there is any.
    above = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = above.argmax(1)
    confident = above[np.arange(count), best] >= 0
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (given[confident], best[confident]), 1)
    # Equation 3: each row in proportion to how often its label is given.
    rows = counts.sum(1, keepdims=True)
    shares = np.where(rows > 0, counts / np.maximum(rows, 1), np.eye(classes))
    joint = shares * labelled[:, None] / max(count, 1)
    others = probabilities.copy()
    others[np.arange(count), given] = -np.inf
    return LabelErrors(
        thresholds=thresholds,
        counts=counts,
        joint=joint,
        given=given,
        suggested=np.where(confident, best, given),
        confidence=own,
        margin=own - others.max(1),
    )


def label_errors_of(grades: Sequence[Grade], labels: Sequence[str]) -> LabelErrors | None:
    """Find the wrong labels of graded answers.

    Args:
        grades: one for each example.
        labels: the names of the classes.

    Returns:
        None where an answer is not one decision between these classes, as of tags, or where a
        probability is not a number.
    """
    if len(labels) < 2 or not grades:
        return None
    decisions = [grade.decisions[0] for grade in grades if len(grade.decisions) == 1]
    if len(decisions) < len(grades):
        return None
    if any(len(decision.distribution) != len(labels) for decision in decisions):
        return None
    probabilities = np.array([decision.distribution for decision in decisions], dtype=np.float64)
    given = np.array([decision.truth for decision in decisions], dtype=np.int64)
    return find_label_errors(probabilities, given) if np.isfinite(probabilities).all() else None
