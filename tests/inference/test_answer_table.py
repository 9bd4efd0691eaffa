"""Answers beside the rows of a file: what is kept, what is written, and how a run goes on."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import parquet

from pretune.errors import RunError
from pretune.inference import answer_table
from pretune.inference.answer_table import AnswerTable, answered_row, check_table, stamps
from pretune.tasks.base import Prediction

ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": 'a "quoted", long\nline', "label": "x", "score": 0.5},
    {"id": 2, "text": "二", "label": None, "score": float("nan")},
    {"id": 3, "text": "=1+1\t", "label": "y", "score": 1.0, "tags": ["A", "B"]},
]


@dataclass(frozen=True)
class Answer(Prediction):
    label: str
    scores: dict[str, float]


def written(target: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    table = AnswerTable(target, {"of": 1})
    table.add(rows)
    table.finish()
    return target


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_pandas_and_csv_read_what_is_written(tmp_path: Path, suffix: str, separator: str) -> None:
    target = written(tmp_path / f"a{suffix}")
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=separator))
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [row["score"] for row in rows] == ["0.5", "", "1.0"]
    assert json.loads(rows[2]["tags"]) == ["A", "B"]
    read = pd.read_csv(target, sep=separator)
    assert read["id"].tolist() == [1, 2, 3]
    assert not list(tmp_path.glob("*.part"))


def test_json_lines_and_parquet_keep_types(tmp_path: Path) -> None:
    lines = written(tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [ROWS[0], {**ROWS[1], "score": None}, ROWS[2]]
    read = pd.read_parquet(written(tmp_path / "a.parquet"))
    assert read["id"].tolist() == [1, 2, 3]
    assert read["score"].isna().tolist() == [False, True, False]
    assert read["tags"][2].tolist() == ["A", "B"]


def test_parquet_takes_a_column_of_several_types_as_text(tmp_path: Path) -> None:
    mixed = [{"x": 1}, {"x": "one"}, {"x": None}]
    table = parquet.read_table(written(tmp_path / "a.parquet", mixed))
    assert table["x"].to_pylist() == ["1", "one", None]


def test_an_answer_does_not_take_the_place_of_a_column() -> None:
    row = {"text": "a", "label": "x", "predicted_label": "old"}
    answer = Answer("y", {"y": 0.9, "x": 0.1})
    kept = answered_row(row, {"text": "body"}, answer, everything=False)
    assert kept == {
        "body": "a",
        "label": "x",
        "predicted_label": "old",
        "predicted_predicted_label": "y",
    }
    assert answered_row({}, {}, answer, everything=True)["scores"] == answer.scores


def test_what_a_killed_run_left_is_gone_on_with(tmp_path: Path) -> None:
    target = tmp_path / "a.jsonl"
    table = AnswerTable(target, {"of": 1})
    table.add(ROWS[:2])
    table.close()
    with table.part.open("ab") as file:
        file.write(b'{"id": 3, "te')  # killed within a row
    again = AnswerTable(target, {"of": 1})
    assert again.done == 2
    again.add(ROWS[2:])
    again.finish()
    assert target.read_bytes() == written(tmp_path / "b.jsonl").read_bytes()


def test_an_incomplete_group_is_answered_again(tmp_path: Path) -> None:
    table = AnswerTable(tmp_path / "a.jsonl", {})
    table.add(ROWS)
    assert table.keep_groups(2) == 1
    table.add([{"id": 9}])
    table.finish()
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 9]


def test_rows_of_something_else_are_not_gone_on_with(tmp_path: Path) -> None:
    AnswerTable(tmp_path / "a.csv", {"of": 1}).close()
    with pytest.raises(RunError, match="another file, model or option"):
        AnswerTable(tmp_path / "a.csv", {"of": 2})


def test_two_processes_do_not_write_one_table(tmp_path: Path) -> None:
    first = AnswerTable(tmp_path / "a.csv", {})
    with pytest.raises(RunError, match="another process"):
        AnswerTable(tmp_path / "a.csv", {})
    first.close()


def test_mistakes_are_told_before_any_work(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\na\n")
    with pytest.raises(RunError, match="no kind of table"):
        check_table(tmp_path / "a.xlsx", source, overwrite=False)
    with pytest.raises(RunError, match="is the file that is read"):
        check_table(source, source, overwrite=True)
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(RunError, match="exists already"):
        check_table(tmp_path / "b.csv", source, overwrite=False)
    check_table(tmp_path / "b.csv", source, overwrite=True)
    with pytest.raises(RunError, match="there is no folder"):
        check_table(tmp_path / "no" / "b.csv", source, overwrite=False)


def test_a_change_of_a_file_or_a_folder_shows(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    before = stamps(file), stamps(tmp_path)
    file.write_text("12")
    assert stamps(file) != before[0]
    assert stamps(tmp_path) != before[1]
    assert stamps("minilm") == []


def test_parquet_is_written_some_rows_at_a_time_with_types_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_table, "_ROWS", 2)
    rows: list[dict[str, Any]] = [
        {"id": 1, "score": None, "mixed": 1},
        {"id": 2, "score": 1, "mixed": "x"},
        {"id": 3, "score": 0.5, "mixed": [1]},
        {"id": 4, "late": "here"},
    ]
    table = parquet.read_table(written(tmp_path / "a.parquet", rows)).to_pydict()
    assert table == {
        "id": [1, 2, 3, 4],
        "score": [None, 1.0, 0.5, None],
        "mixed": ["1", "x", "[1]", None],
        "late": [None, None, None, "here"],
    }
