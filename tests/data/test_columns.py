from __future__ import annotations

import pytest

from pretune.data.columns import as_text, label_column, text_columns
from pretune.data.records import Records
from pretune.errors import DataError


def of(**row: object) -> Records:
    return Records([row], "a.jsonl", [1], tuple(row))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "a", "other": "a long enough text"}, ("text",)),
        ({"sentence1": "a", "sentence2": "b"}, ("sentence1", "sentence2")),
        ({"id": "7", "review": "a long enough text", "label": "a label that is long"}, ("review",)),
        ({"id": "7", "word": "short"}, ("word",)),
    ],
)
def test_columns_of_text(row: dict[str, object], found: tuple[str, ...]) -> None:
    assert text_columns(of(**row), label="label") == found


def test_nothing_that_looks_like_text() -> None:
    with pytest.raises(DataError, match="no column looks like text; it has 'n'"):
        text_columns(of(n=3))


def test_labels() -> None:
    assert label_column(of(text="a", ner_tags=[])) == "ner_tags"
    assert label_column(of(text="a")) is None


def test_the_only_column_that_repeats_has_the_labels() -> None:
    rows = [{"body": f"a text, number {n}", "queue": "ab"[n % 2], "id": n} for n in range(6)]
    assert label_column(Records(rows, "a.csv", range(6), tuple(rows[0]))) == "queue"
    # Texts that repeat are no labels; of two columns nobody knows which is meant.
    same = [{"body": f"a text, number {n % 2}"} for n in range(6)]
    assert label_column(Records(same, "a.csv", range(6), ("body",))) is None
    two = [row | {"colour": row["queue"]} for row in rows]
    assert label_column(Records(two, "a.csv", range(6), tuple(two[0]))) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["a", "b"], "a b"),
        (
            [{"role": "user", "content": "Hi there"}, {"role": "bot", "content": "Yes"}],
            "Hi there\nYes",
        ),
        ([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "2"}], "Hi\n2"),
        ([{"role": "bot", "content": None, "calls": []}, {"role": "user", "content": "Hi"}], "Hi"),
        ([{"content": None, "value": "Hi"}], "Hi"),  # as tables have the keys of all rows
        ([{"start": 3}], "[{'start': 3}]"),
        ([], ""),
        (3, "3"),
        (2.5, "2.5"),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        ("a\ud83d", "a?"),
    ],
)
def test_cells_as_text(value: object, text: str | None) -> None:
    assert as_text(value) == text
