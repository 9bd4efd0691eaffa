"""The public functions on tables in memory: the same as on files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pytest

import pretune
from pretune.data.readers.files import read
from pretune.errors import DataError, PretuneError, RecipeError, RunError
from tests.training.outcomes import outcome, stopped_after

Rows = list[dict[str, Any]]
Train = Callable[..., Any]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """24 films that are good or bad, under column names of their own."""
    chance = random.Random(0)
    words = [chance.choice(["good", "bad"]) for _ in range(24)]
    return [{"body": f"the film {word} x{i % 7}", "verdict": word} for i, word in enumerate(words)]


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A training of two updates."""
    return {
        "task": {"name": "classify", "max_length": 16},
        "model": {"from": str(tiny_folder)},
        "data": {
            "train": "nothing.tsv",
            "validation": 0.25,
            "columns": {"text": "body", "label": "verdict"},
        },
        "train": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"},
        "output": str(tmp_path / "run"),
    }


def test_training_on_a_frame_is_training_on_its_file(
    rows: Rows, recipe: dict[str, Any], tmp_path: Path
) -> None:
    frame = pd.DataFrame(rows)
    file = tmp_path / "films.csv"
    frame.to_csv(file, index=False)
    changes = {"output": str(tmp_path / "file")}
    first = pretune.train(recipe, changes, data=file, quiet=True)
    second = pretune.train(recipe, data=frame, validation=0.25, quiet=True)
    assert outcome(second.folder) == outcome(first.folder)
    # What ran is told, and is no recipe for another process.
    written = (Path(second.folder) / "recipe.yaml").read_text(encoding="utf-8")
    assert "train: from memory, 24 rows, sha256 " in written
    with pytest.raises(DataError, match="not at hand now"):
        pretune.train(Path(second.folder) / "recipe.yaml", {"output": str(tmp_path / "again")})
    # A finished run needs no data, and compares on data that are given.
    assert pretune.resume(second.folder).metrics == second.metrics
    with pytest.raises(RunError, match="no validation data"):
        pretune.compare([first.folder, second.folder][::-1])
    same = pretune.compare([first.folder, second.folder], frame, resamples=100)
    assert same.differences[0]["accuracy"].value == 0
    assert set(same.to_dataframe()["model"]) == {first.folder, second.folder}


def test_a_run_on_data_from_memory_goes_on_with_the_same_data(
    rows: Rows, recipe: dict[str, Any], tmp_path: Path
) -> None:
    whole = pretune.train(recipe, {"output": str(tmp_path / "whole")}, data=rows, quiet=True)
    with stopped_after(1):
        pretune.train(recipe, data=rows, quiet=True)
    folder = recipe["output"]
    with pytest.raises(DataError, match=r"from memory, 24 rows, sha256 \w+: they were in the mem"):
        pretune.resume(folder, quiet=True)
    with pytest.raises(RunError, match=r"other data than those .* 23 rows.* they were from memory"):
        pretune.resume(folder, data=rows[1:], quiet=True)
    # The same rows in another container are the same data.
    pretune.resume(folder, data=pl.DataFrame(rows), quiet=True)
    assert outcome(folder) == outcome(whole.folder)


def test_saved_data_from_memory_can_be_named_as_a_file(
    rows: Rows, recipe: dict[str, Any], tmp_path: Path
) -> None:
    with stopped_after(1):
        pretune.train(recipe, data=rows, quiet=True)
    file = tmp_path / "saved.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert pretune.resume(recipe["output"], data=file, quiet=True).steps == 2


def test_data_alone_tell_the_task(rows: Rows, recipe: dict[str, Any]) -> None:
    table = [{"text": row["body"], "label": row["verdict"]} for row in rows]
    source, output = recipe["model"]["from"], recipe["output"]
    result = pretune.train(
        datasets.Dataset.from_list(table),
        {"model.from": source, "output": output, "train.max_steps": 1, "task.max_length": 16},
        validation=table[:6],
        quiet=True,
    )
    model = pretune.load(result.folder)
    assert model.labels == ["bad", "good"]
    written = (Path(result.folder) / "recipe.yaml").read_text(encoding="utf-8")
    assert "validation: from memory, 6 rows, sha256 " in written


def test_a_language_model_reads_a_stream(recipe: dict[str, Any], tiny_vocab_folder: Path) -> None:
    stream = datasets.Dataset.from_list([{"text": "the good film " * 9}] * 4).to_iterable_dataset()
    result = pretune.train(
        {
            "task": {"name": "causal_lm", "max_length": 16},
            "model": {
                "from": "gpt2-small",
                "tokenizer": str(tiny_vocab_folder),
                "config": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16},
            },
            "train": {"max_steps": 1, "batch_size": 2, "device": "cpu"},
            "output": recipe["output"],
        },
        data=stream,
        validation=0.25,
        quiet=True,
    )
    assert result.steps == 1


class TestMistakes:
    def test_a_table_in_a_recipe(self, recipe: dict[str, Any]) -> None:
        recipe["data"] = {"train": pd.DataFrame({"text": ["secret"]})}
        with pytest.raises(RecipeError, match=r"data=TABLE\) \(it is a DataFrame\)") as error:
            pretune.train(recipe)
        assert "secret" not in str(error.value)
        with pytest.raises(RecipeError, match="it is a list") as error:
            pretune.train(recipe, {"data.train": [{"text": "secret"}]})
        assert "secret" not in str(error.value)

    def test_two_data(self, rows: Rows) -> None:
        with pytest.raises(PretuneError, match="two data"):
            pretune.train(rows, data=rows)

    def test_no_table(self) -> None:
        with pytest.raises(DataError, match="an int is no table"):
            pretune.train(3)  # type: ignore[arg-type]

    def test_nothing_to_describe(self) -> None:
        with pytest.raises(PretuneError, match="no data"):
            pretune.describe()


def test_describe_and_evaluate_read_tables(rows: Rows, tmp_path: Path) -> None:
    frame = pl.DataFrame(rows)
    file = tmp_path / "films.csv"
    frame.write_csv(file)
    described = pretune.describe(frame, rows[:3], text="body", label="verdict")
    of_file = pretune.describe(file, text="body", label="verdict")
    assert described.files[0].labels == of_file.files[0].labels
    assert described.leaks[0].rows == 3
    assert read(frame).columns == ("body", "verdict")
    assert {*described.to_dataframe()["label"]} == {"all", "good", "bad"}


class TestThingsOfTheWrongType:
    def test_one_model_is_not_several(self) -> None:
        with pytest.raises(PretuneError, match="compare: expected several models, found a str"):
            pretune.compare("runs/a", "runs/b")

    @pytest.mark.parametrize(("source", "what"), [(None, "nothing"), (5, "an int")])
    def test_no_name_of_a_model(self, source: Any, what: str) -> None:
        with pytest.raises(PretuneError, match=f"the folder of a model, found {what}"):
            pretune.load(source)

    def test_a_callback_alone(self, rows: Rows, recipe: dict[str, Any]) -> None:
        class Silent:
            def on_step(self, moment: pretune.Moment) -> None: ...

        callback: Any = Silent()
        with pytest.raises(PretuneError, match="callbacks: expected a list of objects, found a"):
            pretune.train(recipe, data=rows, callbacks=callback, quiet=True)

    def test_overrides_of_data_from_memory(self, rows: Rows) -> None:
        with pytest.raises(PretuneError) as error:
            pretune.train(rows, {"train.epochs": object()})
        assert str(error.value).startswith("defaults for data from memory: train.epochs: should be")

    @pytest.mark.parametrize("name", ["", " ", 5, "a\x1b[31m"])
    def test_a_name_of_a_metric(self, name: Any) -> None:
        with pytest.raises(PretuneError, match="is no name for a metric"):
            pretune.register("metric", name)(lambda answers, truths: 1.0)


def test_a_dict_of_columns_is_a_table(rows: Rows, recipe: dict[str, Any]) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    own = {"model.from": recipe["model"]["from"], "output": recipe["output"], "task.max_length": 16}
    assert pretune.train(columns, {**own, "train.max_steps": 1}, quiet=True).steps == 1
    # A recipe without its data is still one, with a mistake.
    with pytest.raises(RecipeError, match="'data' is missing"):
        pretune.train({"task": {"name": "classify"}})
