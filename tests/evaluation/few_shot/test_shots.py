"""The draw of examples."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pretune.evaluation.few_shot.study import draw_shots

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(LABELS, st.integers(0, 1000), st.booleans(), st.data())
def test_examples_are_of_the_rows_and_no_row_twice(
    labels: list[int], seed: int, balanced: bool, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(labels)))
    found = draw_shots(labels, count, seed, balanced=balanced)
    assert len(set(found)) == len(found) == count
    assert set(found) <= set(range(len(labels)))
    assert found == draw_shots(labels, count, seed, balanced=balanced)
    fewer = draw_shots(labels, count // 2, seed, balanced=balanced)
    assert set(fewer) <= set(found)


@given(LABELS, st.integers(0, 1000), st.data())
def test_balanced_is_as_even_as_the_rows_allow(
    labels: list[int], seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(labels)))
    found = Counter(labels[row] for row in draw_shots(labels, count, seed))
    there = Counter(labels)
    most = max(found.values(), default=0)
    for label, number in there.items():
        assert found[label] >= min(number, most - 1)


def test_at_random_is_as_uneven_as_the_rows() -> None:
    labels = [0] * 900 + [1] * 100
    drawn = [
        labels[row] for seed in range(50) for row in draw_shots(labels, 8, seed, balanced=False)
    ]
    assert 20 <= sum(drawn) <= 65  # 40 expected, standard deviation 6


def test_each_label_comes_first_and_last_in_some_draws() -> None:
    labels = [0, 1] * 20
    orders = {tuple(labels[row] for row in draw_shots(labels, 4, seed)) for seed in range(60)}
    assert len(orders) == 6  # all orders of two and two
