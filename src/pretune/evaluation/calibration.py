"""Calibration: whether a model is right as often as it is sure. ECE, and temperature scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretune.data.arrays import Array
from pretune.tasks.grading import Decision

#: About the smallest normal float32: the probability of what is impossible.
TINY = 1e-38
#: The logarithm of a fitted temperature lies between this and its negative.
LOG_TEMPERATURE_LIMIT = 5.0


@dataclass(frozen=True)
class Reliability:
    """Answers in bins of equal width by their confidence."""

    counts: Array  # `[bins]` number of answers
    confidence: Array  # `[bins]` mean confidence; 0 in an empty bin
    accuracy: Array  # `[bins]` share of right answers; 0 in an empty bin
    ece: float  # expected calibration error (Guo et al. 2017, equation 3)


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> Reliability:
    """Bin the confidences of answers, 0 to 1; bin b holds those in (b/bins, (b+1)/bins]."""
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    # A confidence of 0 belongs to the first bin, though its interval is open there.
    which = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(which, minlength=bins)
    known = np.maximum(counts, 1)
    mean = np.bincount(which, sure, bins) / known
    accuracy = np.bincount(which, hits, bins) / known
    ece = float((counts * np.abs(accuracy - mean)).sum() / max(len(sure), 1))
    return Reliability(counts, mean, accuracy, ece)


def nll(log_p: Array, truth: Array, temperature: float) -> float:
    """Return the mean negative log-probability of the truth `[N]` at a temperature.

    `log_p` holds `[N, C]` logits or log-probabilities.
    """
    # Subtract the largest logit before exp, so that nothing overflows.
    scaled = log_p / temperature
    top = scaled.max(1, keepdims=True)
    log_z = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
    return float((log_z - scaled[np.arange(len(truth)), truth]).mean())


def fit_temperature(log_p: Array, truth: Array) -> float:
    """Find the temperature with the lowest `nll` (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T, so its slope has at most one zero, which bisection in log T finds. If
    every answer is right, the best temperature is 0, and the lower limit is returned.

    Args:
        log_p: `[N, C]` logits or log-probabilities, which differ by a constant in each row.
        truth: `[N]` int64.
    """
    picked = log_p[np.arange(len(truth)), truth]

    # The derivative of the loss by beta = 1/T: the expected logit minus that of the truth.
    def slope(beta: float) -> float:
        scaled = beta * log_p
        weights = np.exp(scaled - scaled.max(1, keepdims=True))
        expected = (weights * log_p).sum(1) / weights.sum(1)
        return float((expected - picked).mean())

    # The slope rises with beta; 60 halvings reach the precision of a float64.
    low, high = -LOG_TEMPERATURE_LIMIT, LOG_TEMPERATURE_LIMIT
    for _ in range(60):
        middle = (low + high) / 2
        if slope(float(np.exp(middle))) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def whole_distributions(decisions: Sequence[Decision]) -> tuple[Array, Array] | None:
    """Collect the probabilities of all possible answers.

    Answers that a decision does not have, as it is between fewer than C, get almost no probability.

    Returns:
        `[N, C]` log-probabilities and `[N]` truths; None if a decision has no distribution.
    """
    if not decisions or any(len(decision.distribution) < 2 for decision in decisions):
        return None
    width = max(len(decision.distribution) for decision in decisions)
    rows = np.full((len(decisions), width), TINY)
    for row, decision in zip(rows, decisions, strict=True):
        row[: len(decision.distribution)] = decision.distribution
    truth = np.array([decision.truth for decision in decisions], dtype=np.int64)
    return np.log(np.maximum(rows, TINY)), truth


def at_temperature(log_p: Array, temperature: float) -> Array:
    """Return `[N, C]` probabilities at a temperature, of `[N, C]` logits or log-probabilities."""
    scaled = log_p / temperature
    weights = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities: Array = weights / weights.sum(1, keepdims=True)
    return probabilities
