"""Precision, recall, F1 and correlation from counts; undefined figures are 0, as in scikit-learn.

The counts are arrays `[..., C]` over C classes or labels: `right`, how often each was predicted
rightly; `truth`, how often it was the truth; `predicted`, how often it was predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pretune.data.arrays import Array

#: The key in the details of an evaluation for the class that F1 is of, where there are two.
POSITIVE = "positive"


def shown_figure(name: str, details: Mapping[str, Any]) -> str:
    """Return the name of a figure for people: F1 of two classes is of one of them, `f1 (spam)`."""
    positive = details.get(POSITIVE)
    return f"{name} ({positive})" if name == "f1" and positive is not None else name


def f1_scores(right: Array, truth: Array, predicted: Array) -> Array:
    """Compute `[..., C]`, the F1 score of each class."""
    scores: Array = 2 * right / np.maximum(truth + predicted, 1)
    return scores


def class_figures(
    right: Array, truth: Array, predicted: Array, positive: int = 1
) -> dict[str, Array]:
    """Compute the figures of a classification into one of C classes.

    Accuracy; F1, of the `positive` class where there are two, as in GLUE, and averaged over the
    classes that occur where there are more; Matthews correlation, generalised to several classes
    (Gorodkin 2004).
    """
    # F1: of classes that occur, as truth or prediction.
    f1, total, hits = f1_scores(right, truth, predicted), truth.sum(-1), right.sum(-1)
    occurs = truth + predicted > 0
    macro = (f1 * occurs).sum(-1) / np.maximum(occurs.sum(-1), 1)
    # Matthews correlation (Gorodkin 2004) from counts; 0 where a side is constant.
    covariance = hits * total - (truth * predicted).sum(-1)
    variances = (total**2 - (predicted**2).sum(-1)) * (total**2 - (truth**2).sum(-1))
    defined = variances > 0
    return {
        "accuracy": hits / np.maximum(total, 1),
        "f1": f1[..., positive] if f1.shape[-1] == 2 else macro,
        "mcc": np.where(defined, covariance / np.sqrt(np.where(defined, variances, 1)), 0.0),
    }


def label_figures(right: Array, truth: Array, predicted: Array) -> dict[str, Array]:
    """Compute the figures of C yes-or-no decisions: F1 over all of them, and the labels' mean."""
    micro = 2 * right.sum(-1) / np.maximum(predicted.sum(-1) + truth.sum(-1), 1)
    return {"micro_f1": micro, "macro_f1": f1_scores(right, truth, predicted).mean(-1)}


def class_table(
    labels: Sequence[str], right: Array, truth: Array, predicted: Array
) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each class, from counts `[C]`."""
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(truth, 1)
    columns = (precision, recall, f1_scores(right, truth, predicted), truth)
    rows = zip(*(values.tolist() for values in columns), strict=True)
    return {
        label: {"precision": p, "recall": r, "f1": f1, "support": int(support)}
        for label, (p, r, f1, support) in zip(labels, rows, strict=True)
    }
