"""Lists of labels as people and pandas write them; scikit-learn's indicator matrix is the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.errors import DataError
from pretune.tasks.classification.label_lists import count_flags, flag, parse_list


def where(row: int) -> str:
    return f"line {row + 2}"


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        ("[0, 1, 0]", [0, 1, 0]),
        ("[True, False]", [True, False]),
        ("[true, false]", ["true", "false"]),
        ("[0 1 0]", ["0", "1", "0"]),
        ("[0. 1.\n 0.]", ["0.", "1.", "0."]),
        ("['joy', 'anger']", ["joy", "anger"]),
        ('["joy", "anger"]', ["joy", "anger"]),
        ("['joy' 'anger']", ["joy", "anger"]),
        ("['joy'\n 'very angry']", ["joy", "very angry"]),
        ('["it\'s", "a, b"]', ["it's", "a, b"]),
        (r"['it\'s']", ["it's"]),
        ("[joy, very angry]", ["joy", "very angry"]),
        ("[very angry]", ["very angry"]),
        ("['joy', nan]", ["joy", None]),
        ("[null]", [None]),
        ("('joy', 'anger')", ["joy", "anger"]),
        ("{'joy'}", ["joy"]),
        ("set()", []),
        ("[['joy'], ['anger']]", [["joy"], ["anger"]]),
    ],
)
def test_lists_written_as_text(text: str, items: list[Any]) -> None:
    assert parse_list(text) == items
    assert parse_list(f" {text} ") == items


@pytest.mark.parametrize("text", ["joy", "joy|anger", "", "[", "(joy)", "{joy}", '{"a": 1}', "0 1"])
def test_other_texts_are_no_lists(text: str) -> None:
    assert parse_list(text) is None


@pytest.mark.parametrize("text", ["[" * 50_000 + "]" * 50_000, "[" + "-" * 90_000 + "1]", "['a]"])
def test_hostile_texts_end_in_something(text: str) -> None:
    assert parse_list(text) is not None


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"]), min_size=1)


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_what_pandas_writes_of_lists_is_read_back(words: list[str]) -> None:
    for value in (words, np.array(words, dtype=object)):
        cell = pd.DataFrame({"labels": [value]}).astype(str)["labels"][0]
        assert parse_list(cell) == words


@pytest.mark.parametrize("value", [1, 0, True, False, 1.0, 0.0, "1", "0", " 1.0", "TRUE", "0."])
def test_flags(value: Any) -> None:
    assert flag(value) is (str(value).strip().lower() in ("1", "1.0", "true"))


@pytest.mark.parametrize("value", [2, -1, 0.5, None, "", "yes", "1_0", float("nan"), [1]])
def test_what_is_no_flag(value: Any) -> None:
    assert flag(value) is None


@pytest.mark.parametrize(
    ("lists", "width"),
    [
        ([[1, 0, 0], [0, 1, 1]], 3),
        ([[True, False], [False, True]], 2),
        ([[1.0, 0.0], [0.0, 0.0]], 2),
        ([["1", "0", "0"]], 3),
        ([[1, 0, 0], [], [0, 0, 0]], 3),
        # Numbers of labels: not equally many, none twice in a list.
        ([[0, 3], [1]], None),
        ([[0, 1], [1], [0]], None),
        ([[0], [1], [1]], None),
        ([[0, 3], [1, 2]], None),
        ([[27], [3, 3], [2]], None),
        ([["a", "b"], ["b", "a"]], None),
        ([[], []], None),
        ([[1, None, 0]], None),
    ],
    ids=str,
)
def test_whether_lists_are_flags_shows_in_all_together(lists: list[Any], width: int | None) -> None:
    assert count_flags(lists, where) == width


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        (
            [[1, 0, 0], [1, 0, 0], [1, 0]],
            "line 4: expected 3 numbers 0 or 1, a label each, .* 2",
        ),
        ([[1, 0, 0], [0, 2, 0]], "line 3: expected 3 numbers 0 or 1, a label each, found 2"),
        ([[1, -1, -1], [1, 1, -1]], "line 2: expected 3 .* found -1"),
        ([[0.9, 0.1, 0.1]], "line 2: expected 3 .* found 0.9"),
    ],
)
def test_flags_that_do_not_fit_name_the_place(lists: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        count_flags(lists, where)
