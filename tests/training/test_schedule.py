from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.training.schedule import rate_factor, warmup_updates

shapes = st.sampled_from(["linear", "cosine", "constant"])


@given(st.integers(1, 500), st.integers(0, 500), shapes, st.floats(0, 1))
def test_rises_to_one_then_never_rises_again(
    total: int, warmup: int, shape: str, floor: float
) -> None:
    warmup = min(warmup, total)
    factors = [rate_factor(step, total, warmup, shape, floor) for step in range(total)]
    assert all(0 < f <= 1 or floor == 0 for f in factors)
    rise, fall = factors[:warmup], factors[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rise))
    assert all(a >= b for a, b in itertools.pairwise(fall))
    if fall:
        assert fall[0] == 1
        assert min(fall) >= floor - 1e-12


def test_linear_by_hand() -> None:
    factors = [rate_factor(step, 6, 2, "linear", 0.0) for step in range(6)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4])


def test_cosine_by_hand() -> None:
    factors = [rate_factor(step, 4, 0, "cosine", 0.1) for step in range(5)]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * x / 4)) / 2 for x in range(5)]
    assert factors == pytest.approx(expected)


def test_past_the_end_it_stays_at_the_floor() -> None:
    assert rate_factor(99, 10, 2, "linear", 0.2) == pytest.approx(0.2)


def test_warmup_is_a_share_or_a_count() -> None:
    assert warmup_updates(0.1, 345) == 34
    assert warmup_updates(50, 345) == 50
    assert warmup_updates(500, 345) == 345
    assert warmup_updates(0, 345) == 0


def test_an_unknown_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="zigzag"):
        rate_factor(5, 10, 0, "zigzag")
