from __future__ import annotations

import pytest

from pretune.data.columns import (
    as_text,
    guess_columns,
    label_column,
    likely_columns,
    text_columns,
)
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


def table(**columns: list[object]) -> Records:
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return Records(rows, "a.csv", range(2, 2 + len(rows)), tuple(columns))


def test_short_texts_in_chinese_are_texts() -> None:
    """A sentence of eight characters is one; so is less, under a usual name."""
    kinds: list[object] = ["物流", "退款"] * 4
    sentences: list[object] = [f"快递现在到哪里了{n}" for n in range(8)]
    assert guess_columns(table(消息=sentences, 种类=kinds), ["text", "label"], {}) == {
        "text": "消息",
        "label": "种类",
    }
    short: list[object] = [f"退{n}" for n in range(8)]
    assert guess_columns(table(内容=short, 种类=kinds), ["text", "label"], {})["text"] == "内容"
    assert guess_columns(table(消息=short, 种类=kinds), ["text", "label"], {}) == {}


def test_columns_that_may_be_meant_are_named_where_several_may() -> None:
    texts: list[object] = [f"a question, number {n}" for n in range(8)]
    kinds: list[object] = ["loan", "room"] * 4
    records = table(Anfrage=texts, Thema=kinds, Kanal=kinds[::-1], Wert=[*range(8)])
    assert guess_columns(records, ["text", "label"], {}) == {}
    assert likely_columns(records, ["text", "label"]) == [
        "By what is in them, text may be 'Anfrage'.",
        "By what is in them, label may be 'Thema', 'Kanal'.",
    ]
    # 'Wert' is spelled no more like 'text' than any word is.
    with pytest.raises(DataError) as caught:
        records.mapped({}, ["text", "label"])
    assert caught.value.hint.startswith("Say which one it is with data.columns.text=COLUMN")
    # What looks like a record names no columns.
    assert likely_columns(table(**{"a question, number 9": texts, "7": kinds}), ["text"]) == []


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
