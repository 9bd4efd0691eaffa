from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from pretune.evaluation.calibration import fit_temperature, nll, reliability, whole_distributions
from pretune.tasks.grading import Decision


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


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 15),
)
def test_ece_is_that_of_a_loop(pairs: list[tuple[float, bool]], bins: int) -> None:
    """Guo et al. 2017, equation 3: bin m holds what is in ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        # The lowest bin has what is sure of nothing, too. Products, as quotients are rounded.
        own = [(c, r) for c, r in pairs if m - 1 < c * bins <= m or (m == 1 and c == 0)]
        if own:
            accuracy = sum(r for _, r in own) / len(own)
            total += len(own) / len(pairs) * abs(accuracy - sum(c for c, _ in own) / len(own))
    found = reliability(*zip(*pairs, strict=True), bins=bins)
    assert found.ece == pytest.approx(total, abs=1e-12)
    assert found.counts.sum() == len(pairs)


def test_choices_that_others_lack_change_nothing() -> None:
    two = [Decision(0.7, True, (0.7, 0.3), 0, 0), Decision(0.6, False, (0.4, 0.6), 1, 0)]
    three = [Decision(0.5, False, (0.5, 0.2, 0.3), 0, 2)]
    whole = whole_distributions([*two, *three])
    assert whole is not None
    for temperature in (0.5, 1.0, 3.0):
        parts = [whole_distributions(two), whole_distributions(three)]
        apart = [nll(*part, temperature) for part in parts if part is not None]
        assert nll(*whole, temperature) == pytest.approx((2 * apart[0] + apart[1]) / 3, rel=1e-6)
    assert whole_distributions([*two, Decision(0.5, True)]) is None
    assert whole_distributions([]) is None
