from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretune.data.readers.files import read
from pretune.errors import DataError

ANSWER = {"text": "a film", "answer_start": 3}
QUESTION = {"id": "q1", "question": "What is it?", "answers": [ANSWER]}


def nested(*paragraphs: Any) -> dict[str, Any]:
    return {"version": "1.1", "data": [{"title": "Films", "paragraphs": list(paragraphs)}]}


def written(folder: Path, content: Any, *, indent: int | None = None) -> Path:
    path = folder / "squad.json"
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_a_question_is_a_record_as_on_the_hub(tmp_path: Path, indent: int | None) -> None:
    second = {"id": 7, "question": "Why?", "answers": [], "is_impossible": True}
    content = nested({"context": "Is a film.", "qas": [QUESTION, second]})
    found = read(written(tmp_path, content, indent=indent))
    shared = {"title": "Films", "context": "Is a film."}
    assert list(found.rows) == [
        {
            "id": "q1",
            **shared,
            "question": "What is it?",
            "answers": {"text": ["a film"], "answer_start": [3]},
        },
        {
            "id": "7",
            **shared,
            "question": "Why?",
            "answers": {"text": [], "answer_start": []},
            "is_impossible": True,
        },
    ]
    assert found.rows[0]["context"] is found.rows[1]["context"]


def test_questions_to_predict_on_need_no_answers(tmp_path: Path) -> None:
    content = nested({"context": "A.", "qas": [{"id": "x", "question": "B?"}]})
    assert read(written(tmp_path, content)).rows[0]["answers"] == {"text": [], "answer_start": []}


PARAGRAPH = {"context": "Is a film.", "qas": [QUESTION]}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([PARAGRAPH], "row 1.qas[0]"),  # simpletransformers
        ([{"title": "", "paragraphs": [PARAGRAPH]}], "row 1.paragraphs[0].qas[0]"),
        ({"version": "2.0", "data": [PARAGRAPH]}, "data[0].qas[0]"),
        (PARAGRAPH, "line 1.qas[0]"),
    ],
)
def test_articles_and_paragraphs_may_stand_by_themselves(
    tmp_path: Path, content: Any, place: str
) -> None:
    if isinstance(content, dict) and "data" not in content:
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    else:
        path = written(tmp_path, content)
    expected = read(written(tmp_path / "..", nested(PARAGRAPH))).rows[0]
    assert list(read(path).rows) == [{**expected, "title": ""}]
    broken = (
        path.read_text(encoding="utf-8").replace("What is it?", "").replace('"question"', '"q"')
    )
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read(path)
    assert error.value.message.startswith(f"{path}, {place} (id q1): expected a str as 'question'")


@pytest.mark.parametrize(
    ("paragraph", "said"),
    [
        ({"qas": [QUESTION]}, r"paragraphs\[0\]: expected a str as 'context', found nothing"),
        ({"context": "x"}, "'qas', found nothing"),
        ({"context": "x", "qas": [{"id": "q9"}]}, r"qas\[0\] \(id q9\).*'question', found nothing"),
        ({"context": "x", "qas": ["q"]}, "'question'"),
        ({"context": "x", "qas": [{**QUESTION, "answers": {}}]}, "'answers', found a dict"),
        (
            {"context": "x", "qas": [{**QUESTION, "answers": [{**ANSWER, "answer_start": "3"}]}]},
            r"answers\[0\].*'answer_start', found a str",
        ),
        (
            {"context": "x", "qas": [{**QUESTION, "answers": [{**ANSWER, "answer_start": True}]}]},
            "found a bool",
        ),
        ({"context": "x", "qas": [{**QUESTION, "is_impossible": 1}]}, "'is_impossible'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, paragraph: Any, said: str) -> None:
    path = written(tmp_path, nested(paragraph))
    with pytest.raises(DataError, match=said) as error:
        read(path)
    assert str(path) in str(error.value)


def test_other_json_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"text": "a", "data": [1]}\n{"text": "b"}\n', encoding="utf-8")
    assert [row["text"] for row in read(path).rows] == ["a", "b"]
    path.write_text('{"text": "a", "data": [{"x": 1}]}', encoding="utf-8")
    assert read(path).lines == [1]


@pytest.mark.parametrize(
    ("name", "count", "without"),
    [
        ("squad/dev-v1.1.json", 4872, 0),
        ("squad/dev-v2.0.json", 6202, 3169),
        ("cmrc2018/trial.json", 1000, 0),
        ("drcd/dev.json", 3524, 0),
        ("xquad/xquad.zh.json", 560, 0),
    ],
)
def test_public_files(data_folder: Path, name: str, count: int, without: int) -> None:
    rows = read(data_folder / name).rows
    assert len(rows) == count
    assert sum(not row["answers"]["text"] for row in rows) == without
    for row in rows:
        for text, start in zip(*row["answers"].values(), strict=True):
            assert row["context"].startswith(text, start)


def test_a_number_with_too_many_digits(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    content = json.dumps(nested({"context": "Is a film.", "qas": [QUESTION]}))
    path.write_text(content.replace('"answer_start": 3', '"answer_start": ' + "9" * 5000))
    with pytest.raises(DataError, match=r"not valid JSON \(Exceeds the limit"):
        read(path)
