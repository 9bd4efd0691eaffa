"""The texts from which a new tokenizer is trained (`model.train_tokenizer`), of every task."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.data.records import Records
from pretune.tasks.multiple_choice.choose import Choose, ChooseOptions
from pretune.tasks.tagging.tag import Tagger, TagOptions
from tests.tasks.every_task import CASES


@pytest.mark.parametrize("name", CASES)
def test_of_every_task(name: str) -> None:
    texts = list(CASES[name].task().texts(CASES[name].records(4)))
    assert texts
    assert all(isinstance(text, str) and text.strip() for text in texts)


def of(*rows: dict[str, Any]) -> Records:
    return Records(rows, "some.jsonl", columns=tuple(rows[0]))


@pytest.mark.parametrize(
    ("rows", "characters", "expected"),
    [
        ([{"tokens": ["Ada", "slept"]}, {"tokens": []}], False, ["Ada slept", ""]),
        ([{"tokens": ["高", "勇"]}, {"tokens": "他 来"}], True, ["高勇", "他来"]),
        ([{"tokens": None}, {"tokens": "Ada slept."}], False, ["Ada slept ."]),
    ],
)
def test_of_tagged_words(rows: list[dict[str, Any]], characters: bool, expected: list[str]) -> None:
    task = Tagger(TagOptions(), ["O"], characters=characters)
    assert list(task.texts(of(*rows))) == expected


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (["choices"], {"choices": ["a b", "c"]}),
        (["choices"], {"choices": "a b|c"}),
        (["one", "two", "three"], {"one": "a b", "two": "c", "three": None}),
    ],
)
def test_of_choices(columns: list[str], row: dict[str, Any]) -> None:
    task = Choose(ChooseOptions(choices=columns, stem=True))
    record = {"context": "where", "stem": "it is", **row}
    assert list(task.texts(of(record))) == ["where", "it is", "a b", "c"]
