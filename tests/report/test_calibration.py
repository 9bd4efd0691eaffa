from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from pretune.report.calibration import fit_temperature, nll, reliability


def test_a_temperature_is_scipys_optimum() -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(500, 5)) * 4
    noisy = logits / 3 + draw.gumbel(size=logits.shape)
    truth = noisy.argmax(1)
    found = fit_temperature(logits, truth)
    best = minimize_scalar(lambda t: nll(logits, truth, t), bounds=(0.05, 50), method="bounded")
    assert found == pytest.approx(best.x, rel=1e-3)
    assert 2.0 < found < 4.5


def test_of_two_classes_and_one_margin_the_temperature_has_a_closed_form() -> None:
    # All margins are m, and a share q is right: the best T is m / log(q / (1 - q)).
    logits = np.tile([3.0, 0.0], (10, 1))
    truth = np.array([0] * 8 + [1] * 2)
    assert fit_temperature(logits, truth) == pytest.approx(3.0 / np.log(4.0))


def test_ece_by_hand() -> None:
    found = reliability([0.95, 0.85, 0.85, 0.5], [True, True, False, False])
    # Bins: one at 0.95 (right), two at 0.85 (half right), one at 0.5 (wrong).
    assert found.ece == pytest.approx((0.05 + 2 * 0.35 + 0.5) / 4)
    assert found.counts.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 2, 1]
