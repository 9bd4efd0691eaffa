from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.errors import RecipeError
from pretune.experiments.search_space import Space, check_spaces, parse_space
from pretune.recipe.recipe import Recipe

Make = Callable[..., Recipe]


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a=log:1e-5..1e-3", Space("a", "log:1e-5..1e-3", 1e-5, 1e-3, log=True)),
            ("a=0..0.2", Space("a", "0..0.2", 0, 0.2)),
            ("a=1..5", Space("a", "1..5", 1, 5, whole=True)),
            ("a=1.0..5", Space("a", "1.0..5", 1, 5)),
            ("a=log:8..64", Space("a", "log:8..64", 8, 64, log=True, whole=True)),
            ("a=-2..-1", Space("a", "-2..-1", -2, -1, whole=True)),
            ("a=8,16,32", Space("a", "8,16,32", choices=("8", "16", "32"))),
            ("a = x, y", Space("a", "x, y", choices=("x", "y"))),
        ],
    )
    def test_of_every_form(self, text: str, expected: Space) -> None:
        assert parse_space(text) == expected

    def test_listed_values_may_be_anything_a_recipe_holds(self) -> None:
        space = parse_space("train.freeze=none,{layers: 2},null,../a..b")
        assert space.corners == ["none", {"layers": 2}, None, "../a..b"]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("train.learning_rate", "expected KEY=RANGE"),
            ("=1..2", "expected KEY=RANGE"),
            ("a=", "expected KEY=RANGE"),
            ("a=5..1", "is empty"),
            ("a=2..2", "is empty"),
            ("a=log:0..1", "starts above 0"),
            ("a=log:x..y", "not a range of numbers"),
            ("a=log:1,2", "not a range of numbers"),
            ("a=1..inf", "is one value"),
            ("a=8", "is one value"),
            ("a=8,8", "names a value twice"),
            ("a=8,[", "--over a"),
        ],
    )
    def test_of_anything_else_is_an_error(self, text: str, said: str) -> None:
        with pytest.raises(RecipeError, match=r".") as caught:
            parse_space(text)
        assert said in str(caught.value)

    @given(
        st.floats(-1e6, 1e6).map(lambda x: x + 0.0),
        st.floats(-1e6, 1e6).map(lambda x: x + 0.0),
    )
    def test_takes_any_two_numbers_in_order(self, one: float, other: float) -> None:
        low, high = sorted((one, other))
        text = f"a={low!r}..{high!r}"
        if low == high:
            with pytest.raises(RecipeError):
                parse_space(text)
            return
        space = parse_space(text)
        assert (space.low, space.high) == (low, high)
        assert math.isclose(space.value(low), low)


class TestChecking:
    def check(self, recipe: Recipe, *spaces: str) -> None:
        check_spaces(recipe, [parse_space(one) for one in spaces])

    def test_takes_what_the_recipe_takes(self, toy_recipe: Make) -> None:
        self.check(
            toy_recipe(), "train.learning_rate=log:1e-5..1e-3", "train.batch_size=8,16", "seed=0..9"
        )
        self.check(toy_recipe(), "train.batch_tokens=256,512")  # in place of its batch_size

    @pytest.mark.parametrize(
        ("space", "said"),
        [
            ("train.lr=1e-5..1e-3", "Did you mean 'train.learning_rate'?"),
            ("train.lerning_rate=1e-5..1e-3", "Did you mean 'train.learning_rate'?"),
            ("learning_rate=1e-5..1e-3", "Did you mean 'train.learning_rate'?"),
            ("train.epochs=0..3", "train.epochs"),
            ("train.schedule=linear,cosin", "cosin"),
            ("output=a,b", "set this for all trials"),
            ("track.name=a,b", "set this for all trials"),
        ],
    )
    def test_names_what_it_does_not(self, toy_recipe: Make, space: str, said: str) -> None:
        with pytest.raises(RecipeError) as caught:
            self.check(toy_recipe(), space)
        assert said in str(caught.value)
        assert "--over" in str(caught.value)

    def test_a_key_given_twice_is_an_error(self, toy_recipe: Make) -> None:
        with pytest.raises(RecipeError, match="given twice"):
            self.check(toy_recipe(), "train.epochs=1..2", "train.epochs=2..3")

    def test_nothing_to_try_is_an_error(self, toy_recipe: Make) -> None:
        with pytest.raises(RecipeError, match="nothing to try"):
            check_spaces(toy_recipe(), [])
