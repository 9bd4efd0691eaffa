"""What is told of data before training, all at once, and what becomes of records that are bad."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.data.records import Records
from pretune.errors import DataError
from pretune.recipe.recipe import Recipe, parse_override
from pretune.recipe.schema import DataSection
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.text.spoken_language import speaking
from pretune.training.data import read_data
from pretune.training.first_look import data_sentences, doubts
from pretune.training.run import train_recipe

Make = Callable[..., Recipe]
DIRTY = """\
Ticket,Message Body,Category
1,where is my parcel today,delivery
2,i want my money back,refund
3,this has no label at all,
4,one,field,too,many
5,where is the parcel now,delivery
6,please give me my money,refund
7,and the parcel is not here,
8,give me back the money,refund
"""


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    path = tmp_path / "dirty.csv"
    path.write_text(DIRTY, encoding="utf-8")
    return path


def train_records(path: Path, **changes: Any) -> Records:
    values = {"data.validation": None, **{k.replace("__", "."): v for k, v in changes.items()}}
    records, _ = read_data(Recipe.load(path, values))
    assert isinstance(records, Records)
    return records


class TestBadRecords:
    def test_are_told_together_under_the_names_of_the_file(self, dirty: Path) -> None:
        with pytest.raises(DataError) as caught:
            train_records(dirty)
        assert caught.value.message.split("\n") == [
            f"{dirty}: 3 of 8 records cannot be used:",
            "  line 5: 5 fields, but the header names 3 (Ticket, Message Body, Category)",
            "  line 4, column 'Category': no label there ('')",
            "  line 8, column 'Category': no label there ('')",
        ]
        assert "data.errors=skip" in str(caught.value.hint)
        command = f"pretune describe {dirty} --text 'Message Body' --label Category"
        assert str(caught.value.hint).endswith(command)

    def test_are_left_out_and_counted(self, dirty: Path) -> None:
        records = train_records(dirty, data__errors="skip")
        assert [*(records.lines or ())] == [2, 3, 6, 7, 9]
        assert records.bad is not None
        assert records.bad.count == 3
        told = "\n".join(records.notes)
        assert "3 of 8 records were left out (data.errors=skip):\n  line 5: 5 fields" in told

    def test_are_an_error_if_there_are_no_others(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("text,label\nx,\ny,\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"2 of 2 records"):
            train_records(path, data__errors="skip")

    @pytest.mark.parametrize(
        ("task", "good", "wrong"),
        [
            ("multilabel", {"text": "a", "labels": ["x"]}, {"text": "b", "labels": {"x": 1}}),
            ("regress", {"text": "a", "score": 1}, {"text": "b", "score": "high"}),
            (
                "choose",
                {"context": "a", "choices": ["x", "y"], "label": 0},
                {"context": "a", "choices": ["x", "y"], "label": 7},
            ),
            (
                "tag",
                {"tokens": ["a"], "ner_tags": ["B-X"]},
                {"tokens": ["a"], "ner_tags": ["B-X", "O"]},
            ),
            (
                "answer",
                {"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": [0]}},
                {"question": "q", "context": "c", "answers": 5},
            ),
            ("translate", {"source": "a", "target": "b"}, {"source": "a", "target": ["b"]}),
            ("mask_lm", {"text": "A b. C d."}, {"text": {"a": 1}}),
            ("causal_lm", {"text": "a"}, {"text": {"a": 1}}),
            ("chat", {"turns": ["a", "b"]}, {"turns": ["a", 5]}),
            (
                "instruct",
                {
                    "messages": [
                        {"role": "user", "content": "a"},
                        {"role": "assistant", "content": "b"},
                    ]
                },
                {"messages": [{"role": "nobody", "content": "a"}]},
            ),
            (
                "dpo",
                {"prompt": "p", "chosen": "a", "rejected": "b"},
                {"prompt": "p", "chosen": "a", "rejected": {"a": 1}},
            ),
        ],
    )
    def test_of_every_task_that_reads_tables(
        self, tmp_path: Path, task: str, good: dict[str, Any], wrong: dict[str, Any]
    ) -> None:
        path = tmp_path / "a.jsonl"
        rows = [good, wrong, good, wrong, {**good}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n", encoding="utf-8")
        values = {"task": task, "data": {"train": str(path), "validation": None}}
        with pytest.raises(DataError, match=r"3 of 6 records cannot be used:\n  line 6: not valid"):
            read_data(Recipe.of(values))
        values["data"]["errors"] = "skip"  # type: ignore[index]
        records, _ = read_data(Recipe.of(values))
        assert len(records) == 3


class TestGuesses:
    def test_are_told_once_with_what_says_the_same(self, dirty: Path) -> None:
        notes = train_records(dirty, data__errors="skip").notes
        (told,) = [note for note in notes if "guess" in note]
        assert "'Message Body' is read as text, 'Category' is read as label" in told
        pasted = shlex.split(told.rpartition("to say it: ")[2])
        columns = dict(parse_override(text) for text in pasted)
        assert columns == {"data.columns.text": "Message Body", "data.columns.label": "Category"}
        again = train_records(dirty, data__errors="skip", **columns)
        assert not [note for note in again.notes if "guess" in note]

    @pytest.mark.parametrize(
        ("header", "row"),
        [
            ("premise,hypothesis,verdict", "a cat sits there,there is a cat,yes"),
            ("one,two,other", "first text of it,second text of it,yes"),
        ],
    )
    def test_of_pairs(self, tmp_path: Path, header: str, row: str) -> None:
        path = tmp_path / "a.csv"
        rows = [header, row, row, row.replace("yes", "no"), row]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        records = train_records(path, task__pair=True)
        names = header.split(",")
        assert records.renamed == dict(zip(("sentence1", "sentence2", "label"), names, strict=True))

    @pytest.mark.parametrize(
        "table",
        [
            "a,b,label\nlong text in here,long text in here,x\n",  # two that could be the text
            "body,first,second\na long text,x,y\na long text,x,y\n",  # two that could be the label
        ],
    )
    def test_are_not_made_where_there_are_several(self, tmp_path: Path, table: str) -> None:
        path = tmp_path / "a.csv"
        path.write_text(table, encoding="utf-8")
        with pytest.raises(DataError, match=r"no column '(text|label)'"):
            train_records(path)

    def test_hold_for_predictions_of_the_model(self, toy_recipe: Make, dirty: Path) -> None:
        recipe = toy_recipe(
            data__train=str(dirty), data__validation=None, data__errors="skip", train__max_steps=1
        )
        result = train_recipe(recipe, quiet=True)
        saved = json.loads((Path(result.folder) / "last" / "pretune.json").read_text())
        assert saved["columns"] == {"text": "Message Body", "label": "Category"}
        # What was left out is in the record of the run.
        assert result.data["train"]["left_out"] == 3
        (sentence,) = data_sentences(result.data)
        assert sentence.startswith(f"train: 3 records of {dirty} were left out")
        with speaking("zh"):
            assert [*data_sentences(result.data)] == [
                f"train：略去了 {dirty} 的 3 条记录（data.errors=skip）："
                "第 5 行：有 5 个字段，而表头有 3 个（Ticket, Message Body, Category）; "
                "第 4 行，列“Category”：那里没有标签（''）; "
                "第 8 行，列“Category”：那里没有标签（''）"
            ]


class TestDoubts:
    def fitted(self, *rows: tuple[str, str]) -> list[str]:
        lines = [{"text": text, "label": label} for text, label in rows]
        records = Records(lines, "a.csv", range(2, len(lines) + 2), ("text", "label"))
        task = Classify(ClassifyOptions())
        task.fit(records)
        return [*doubts(task, records, DataSection(train="a.csv", encoding="gb18030"))]

    def test_about_rare_labels_and_texts_with_different_labels(self) -> None:
        rows = [(f"text {i}", "common") for i in range(60)]
        told = self.fitted(*rows, ("Text  5", "rare"), ("other", "rare"))
        assert told == [
            "labels with few records to learn from: rare (2)",
            "1 text has different labels in different records: line 7 and line 62",
            "to look closer: pretune describe a.csv --encoding gb18030",
        ]

    def test_none(self) -> None:
        assert self.fitted(("a", "x"), ("a", "x"), ("b", "y")) == []
