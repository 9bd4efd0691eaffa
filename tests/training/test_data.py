"""Columns of training data: the names that a recipe gives, and those that nothing reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretune.data.records import Records
from pretune.errors import DataError
from pretune.recipe.recipe import Recipe
from pretune.training.data import read_data


def written(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def train_records(source: str, **overrides: Any) -> Records:
    values = {"data.validation": None, **{k.replace("__", "."): v for k, v in overrides.items()}}
    records, _ = read_data(Recipe.load(source, values))
    assert isinstance(records, Records)
    return records


class TestNames:
    TABLE = "text,label\na,1\nb,0\n"

    @pytest.mark.parametrize(
        ("ours", "theirs", "near"),
        [
            ("text", "body", ""),
            ("label", "lable", "mean 'label'"),
            ("text", "TEXTS", "mean 'text'"),
        ],
    )
    def test_that_are_given_must_be_there(
        self, tmp_path: Path, ours: str, theirs: str, near: str
    ) -> None:
        path = written(tmp_path, "a.csv", self.TABLE)
        with pytest.raises(DataError) as caught:
            train_records(path, **{f"data.columns.{ours}": theirs})
        assert caught.value.message == (
            f"{path}: no column '{theirs}' (for '{ours}'); it has 'text', 'label'"
        )
        assert near in str(caught.value.hint)

    def test_must_be_of_columns_of_the_task(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.csv", self.TABLE)
        with pytest.raises(DataError, match=r"data\.columns\.txt=text: .* no column 'txt'"):
            train_records(path, **{"data.columns.txt": "text"})

    def test_of_a_built_in_recipe_are_for_its_own_data(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.csv", self.TABLE)
        records = train_records("sst2", data__train=path)
        assert records.rows[0] == {"text": "a", "label": "1"}
        assert records.notes == (f"{path}: no column 'sentence', so 'text' is read",)
        with pytest.raises(DataError, match="no column 'body'"):
            train_records("sst2", data__train=path, **{"data.columns.text": "body"})

    def test_validation_data_may_have_those_of_the_task(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.csv", "body,label\na,1\nb,0\n")
        values = {"data.columns.text": "body", "data.validation": path.replace("a.csv", "b.csv")}
        written(tmp_path, "b.csv", self.TABLE)
        _, validation = read_data(Recipe.load(path, values))
        assert isinstance(validation, Records)
        assert validation.rows[0]["text"] == "a"

    @pytest.mark.parametrize("value", [1, "1", -2])
    def test_may_be_numbers(self, tmp_path: Path, value: object) -> None:
        path = written(tmp_path, "a.csv", "good,pos\ngood,neg\nfilm,pos\n")
        columns = {"data.columns.text": value, "data.columns.label": 2}
        records = train_records(path, **columns)
        assert [row["label"] for row in records.rows] == ["pos", "neg", "pos"]

    def test_a_number_may_be_a_name(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.csv", "text,1\na,pos\nb,neg\n")
        assert train_records(path, **{"data.columns.label": "1"}).rows[0]["label"] == "pos"

    def test_the_recipe_of_a_file_is_made_as_the_overrides_say(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes("text,label\n电影,1\n书,0\n".encode("gb18030"))
        assert train_records(str(path), data__encoding="gb18030").rows[0]["text"] == "电影"
        header = {"data.columns.sentence1": 1, "data.columns.sentence2": 2, "data.columns.label": 3}
        written(tmp_path, "b.csv", "a,b,1\nc,d,0\n")
        recipe = Recipe.load(tmp_path / "b.csv", header)
        assert recipe.task.model_dump()["pair"]


class TestUnused:
    @pytest.mark.parametrize(
        ("task", "row", "unused"),
        [
            ("classify", {"text": "a", "label": "b", "date": 1, "id": 2}, "date"),
            ("classify", {"text": "a", "label": "b"}, None),
            (
                "classify pair",
                {"sentence1": "a", "sentence2": "b", "label": "c", "text": "d"},
                "text",
            ),
            ("tag", {"tokens": ["a"], "ner_tags": ["O"], "pos_tags": ["X"]}, "pos_tags"),
            ("chat", {"turns": ["a", "b"], "system": "c"}, "system"),
            (
                "instruct",
                {"instruction": "a", "output": "b", "system": "c", "tools": "[]", "n": 1},
                "tools, n",
            ),
            (
                "instruct",
                {"messages": [{"role": "user", "content": "a"}], "history": [], "input": "d"},
                "history, input",
            ),
        ],
    )
    def test_columns_are_named(
        self, tmp_path: Path, task: str, row: dict[str, Any], unused: str | None
    ) -> None:
        path = written(tmp_path, "a.jsonl", json.dumps(row) + "\n" + json.dumps(row) + "\n")
        name, *pair = task.split()
        options = {"name": name, **dict.fromkeys(pair, True)}
        recipe = Recipe.of({"task": options, "data": {"train": path, "validation": None}})
        records, _ = read_data(recipe)
        assert isinstance(records, Records)
        assert records.notes == (() if unused is None else (f"{path}: columns not used: {unused}",))

    def test_no_more_than_ten(self, tmp_path: Path) -> None:
        names = [f"c{i}" for i in range(12)]
        head = ",".join(["text", "label", *names])
        path = written(tmp_path, "a.csv", f"{head}\n{'a,' * 13}b\n")
        (note,) = train_records(path).notes
        assert note.endswith("c8, c9, ...")

    def test_are_told_once(self, tmp_path: Path) -> None:
        rows = "".join(f"a,{i % 2},c\n" for i in range(20))
        path = written(tmp_path, "a.csv", f"text,label,date\n{rows}")
        train, validation = read_data(Recipe.load(path))
        assert isinstance(train, Records)
        assert isinstance(validation, Records)
        assert (len(train.notes), len(validation.notes)) == (1, 0)
