"""`pretune rank`, `pretune train --folds` and `pretune report --label-errors`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.bundle.bundle import save
from pretune.cli.app import app
from tests.tasks.every_task import CASES


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(CASES["classify"].bundle(tiny_folder, folder), folder)
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    path = tmp_path / "inbox.csv"
    path.write_text("body,id\ngood film,1\nbad film,2\nfilm,3\nun good,4\n", encoding="utf-8")
    return path


def test_a_table_in_its_order(model: Path, inbox: Path) -> None:
    output = inbox.with_name("first.csv")
    done = run("rank", model, inbox, "--column", "text=body", "-o", output, "--known", inbox)
    assert done.exit_code == 0, done.output
    with output.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert {row["id"] for row in rows} == {"1", "2", "3", "4"}
    assert set(rows[0]) == {"body", "id", "label", "score", "uncertainty", "rank"}
    assert run("rank", model, inbox, "--column", "text=body", "-o", output).exit_code == 2


def test_shown_and_as_json(model: Path, inbox: Path) -> None:
    words = ("rank", model, inbox, "--column", "text=body", "--count", 2)
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "the first 2 of 4 to label" in done.stdout
    told = json.loads(run(*words, "--json", "--choose", "uncertain", "--by", "margin").stdout)
    assert told["count"] == 4
    assert [row["rank"] for row in told["rows"]] == [1, 2]
    assert told["rows"][0]["uncertainty"] >= told["rows"][1]["uncertainty"]


@pytest.mark.slow
def test_folds_write_their_table_and_page(tiny_folder: Path, tmp_path: Path) -> None:
    lines = [f"{'the ' * (i % 3)}{w} film\t{w}\t{i}" for i in range(6) for w in ("good", "bad")]
    data = tmp_path / "films.tsv"
    data.write_text("\n".join(["text\tlabel\twho", *lines]) + "\n", encoding="utf-8")
    words = ["train", data, f"model.from={tiny_folder}", f"output={tmp_path / 'run'}", "-q"]
    words += ["train.max_steps=1", "task.max_length=16", "--folds", 2, "--group", "who"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    for said in ("2 folds", "± sd", "12 out-of-fold answers", "labels: ", "out-of-fold.jsonl"):
        assert said in done.stdout
    told = json.loads(run(*words, "--json").stdout)
    assert len(told["runs"]) == 2
    assert set(told["out_of_fold"]) == {"accuracy", "f1", "mcc"}
    assert (tmp_path / "run" / "folds.html").is_file()
    # The page and the table of one of its runs.
    table = tmp_path / "labels.jsonl"
    done = run("report", tmp_path / "run" / "fold-1", "--explain", 0, "--label-errors", table)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    assert {"text", "label", "label_quality", "label_issue", "suggested_label"} <= set(rows[0])
    page = (tmp_path / "run" / "fold-1" / "report.html").read_text(encoding="utf-8")
    assert "Labels that may be wrong" in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--folds", 2, "--seeds", 2), "give --folds or --seeds, not both"),
        (("--group", "who"), "--group is about --folds N, and there is none"),
        (("--resume", "x", "--folds", 2), "no --seeds, --folds or --overwrite"),
    ],
)
def test_folds_and_what_they_exclude(words: tuple[Any, ...], told: str) -> None:
    done = run("train", "films.tsv", *words)
    assert done.exit_code == 2
    assert told in done.stderr
