"""Whether a model is right as often as it is sure: reliability, ECE, and a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretune.data.arrays import Array
from pretune.tasks.grading import Decision

#: The least float32 above 0: the probability of what is impossible.
TINY = 1e-38
#: Temperatures are looked for between exp(-LOG_TEMPERATURE_LIMIT) and exp(LOG_TEMPERATURE_LIMIT).
LOG_TEMPERATURE_LIMIT = 5.0


@dataclass(frozen=True)
class Reliability:
    """Answers in bins of equal width by their confidence.

    Attributes:
        counts: `[bins]` answers.
        confidence: `[bins]` the mean confidence; 0 where there is none.
        accuracy: `[bins]` the share that was right; 0 where there is none.
        ece: the expected calibration error (Guo et al. 2017, equation 3).
    """

    counts: Array
    confidence: Array
    accuracy: Array
    ece: float


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> Reliability:
    """See `Reliability`; bin b holds what is in (b/bins, (b+1)/bins]."""
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    which = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    known = np.maximum(counts, 1)
    mean = np.bincount(which, sure, bins) / known
    accuracy = np.bincount(which, hits, bins) / known
    ece = float((counts * np.abs(accuracy - mean)).sum() / max(len(sure), 1))
    return Reliability(counts, mean, accuracy, ece)


def nll(log_p: Array, truth: Array, temperature: float) -> float:
    """The mean negative log-probability of the truth at a temperature."""
    scaled = log_p / temperature
    top = scaled.max(1, keepdims=True)
    log_z = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
    return float((log_z - scaled[np.arange(len(truth)), truth]).mean())


def fit_temperature(log_p: Array, truth: Array) -> float:
    """The temperature with the lowest `nll` (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T, so its slope there has at most one zero: found by bisection, in
    log T. Where everything is right, the best temperature is 0 and the lower limit is given.

    Args:
        log_p: `[N, C]` logits, or log-probabilities, which differ by a constant a row.
        truth: `[N]` int64.
    """
    picked = log_p[np.arange(len(truth)), truth]

    def slope(beta: float) -> float:
        scaled = beta * log_p
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        expected = (weights * log_p).sum(1) / weights.sum(1)
        return float((expected - picked).mean())

    low, high = -LOG_TEMPERATURE_LIMIT, LOG_TEMPERATURE_LIMIT
    for _ in range(60):
        middle = (low + high) / 2
        if slope(float(np.exp(middle))) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def whole_distributions(decisions: Sequence[Decision]) -> tuple[Array, Array] | None:
    """`[N, C]` log-probabilities and `[N]` truths, where all that could be said has a probability.

    Of decisions between fewer than C, those that there are not have a probability of nearly 0.
    """
    if not decisions or any(len(one.distribution) < 2 for one in decisions):
        return None
    rows = np.full((len(decisions), max(len(one.distribution) for one in decisions)), TINY)
    for row, one in zip(rows, decisions, strict=True):
        row[: len(one.distribution)] = one.distribution
    truth = np.array([one.truth for one in decisions], dtype=np.int64)
    return np.log(np.maximum(rows, TINY)), truth


def at_temperature(log_p: Array, temperature: float) -> Array:
    """`[N, C]` probabilities at a temperature."""
    scaled = log_p / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    found: Array = weights / weights.sum(1, keepdims=True)
    return found
