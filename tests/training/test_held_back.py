"""A held-back share of records that belong together: whole groups, and no more than the share."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.recipe.recipe import Recipe
from pretune.training.data import _fill, read_data


@pytest.mark.parametrize("seed", range(4))
def test_a_frequent_target_does_not_take_the_training_data(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pairs = [(f"Satz {i}", "OK." if draw.random() < 0.6 else f"Sentence {i}.") for i in range(1000)]
    text = "".join(f"{source}\t{target}\n" for source, target in [("source", "target"), *pairs])
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    recipe = Recipe.load(
        "translate", {"data.train": str(tmp_path / "pairs.tsv"), "data.validation": 0.05}
    )
    train, held = read_data(recipe)
    assert held is not None
    assert (len(train), len(held)) == (950, 50)
    assert not {row["target"] for row in train.rows} & {row["target"] for row in held.rows}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_groups_are_filled_in_without_exceeding_the_share(sizes: list[int], count: int) -> None:
    taken = _fill(np.array(sizes), count)
    total = sum(sizes[place] for place in taken)
    if min(sizes) > count:
        assert total == min(sizes)
        return
    assert total <= count
    left = [size for place, size in enumerate(sizes) if place not in taken]
    assert total == count or all(total + size > count for size in left)
    assert taken == sorted(set(taken))
