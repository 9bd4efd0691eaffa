from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.errors import RecipeError
from pretune.recipe import yaml12

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
    | st.sampled_from(["no", "yes", "5e-5", "1:30", "0x1", "~", "null", "2024-01-01", "=", "010"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert yaml12.parse(yaml12.dump(value), "x") == value
    assert yaml12.parse(yaml12.inline(value), "x") == value
    assert "\n" not in yaml12.inline(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("0o8", "0o8"),
        ("-0x1F", "-0x1F"),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("true", True),
        ("", None),
        ("null", None),
        ("2024-01-01", "2024-01-01"),
        ("-.inf", -math.inf),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = yaml12.parse(f"key: {text}", "x")["key"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml, line 3, column 1: the key 'a' is there twice"),
        ("a: [1", "r.yaml, line 1"),
        ("a: b: c", "r.yaml, line 1, column 5"),
        ("x: !!python/object/apply:os.system ['true']", "r.yaml, line 1"),
        ("? [1]\n: 2", "a key must be a plain word"),
        ("a: \x07", "r.yaml"),
        ("a: 1\nb: !!bool foo", "r.yaml, line 2, column 4: the value is not what !!bool says"),
        ("a: !!timestamp foo", "r.yaml, line 1, column 4: the value is not what !!timestamp"),
        ("a: !!int ''", "r.yaml, line 1, column 4: the value is not what !!int says"),
        ("a: &x [*x]", "r.yaml, line 1, column 8: aliases are not read"),
        ("a: &x [1]\nb: [*x, *x]", "r.yaml, line 2, column 5: aliases are not read"),
    ],
)
def test_errors_name_the_place(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        yaml12.parse(text, "r.yaml")
    assert message in str(caught.value)


def test_deep_nesting_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(RecipeError):
        yaml12.parse("[" * 5000, "r.yaml")
