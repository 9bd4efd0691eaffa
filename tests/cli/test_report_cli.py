"""`pretune report` as a person uses it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.recipe.recipe import Recipe
from pretune.training.run import train_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a run, its data, and other data."""
    folder = tmp_path_factory.mktemp("place")
    for name, count in (("train", 16), ("dev", 10), ("test", 6)):
        rows = [f"{w} film {i}\t{w}" for i in range(count // 2) for w in ("good", "bad")]
        text = "\n".join(["text\tlabel", *rows]) + "\n"
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    recipe = Recipe.of(
        {
            "task": {"name": "classify", "max_length": 16},
            "model": {"from": str(tiny_folder)},
            "data": {"train": str(folder / "train.tsv"), "validation": str(folder / "dev.tsv")},
            "train": {"epochs": 1, "batch_size": 8, "device": "cpu"},
            "output": str(folder / "run"),
        }
    )
    train_recipe(recipe, quiet=True)
    return folder


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "200"})


def refused(done: Any, *said: str) -> None:
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    for part in said:
        assert part in done.stderr


def test_it_goes_into_the_run_folder(place: Path, tmp_path: Path) -> None:
    done = run(place / "run", "--png", tmp_path / "pictures", "--explain", 1)
    assert done.exit_code == 0, done.output
    assert "10 examples" in done.stdout
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h1>run: report</h1>" in page
    assert f"10 examples from {place / 'dev.tsv'}" in page
    assert "max_length: 16" in page  # the recipe
    assert page.count(" class=&quot;tokens") == 0
    assert page.count('class="tokens"') == 1
    assert {"training.png", "confusion.png"} <= {p.name for p in (tmp_path / "pictures").iterdir()}
    refused(run(place / "run"), "report.html: exists already", "--overwrite")
    assert run(place / "run", "--overwrite", "--limit", 3, "--explain", 0).exit_code == 0
    assert "3 examples" in (place / "run" / "report.html").read_text(encoding="utf-8")


def test_other_data_and_chosen_examples(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "test.html"
    more = ("--explain", 0, "--example", 3, "--example", 6)
    done = run(place / "run", place / "test.tsv", "--output", output, *more)
    assert done.exit_code == 0, done.output
    page = output.read_text(encoding="utf-8")
    assert f"Temperature fitted on {place / 'dev.tsv'}" in page
    assert "Line 3: loss" in page
    assert "Line 6: loss" in page
    refused(
        run(place / "run", place / "test.tsv", "--output", tmp_path / "b.html", "--example", 99),
        "--example 99: no example begins in that line",
        "They are in the lines 2 to 7.",
    )
    assert not (tmp_path / "b.html").exists()


def test_other_values_of_options(place: Path, tmp_path: Path) -> None:
    pages = []
    for more in ((), ("--set", "max_length=4"), ("--set", "max_length=16")):
        output = tmp_path / "a.html"
        given = (place / "run", place / "test.tsv", "--output", output, "--explain", 0)
        done = run(*given, "--overwrite", *more)
        assert done.exit_code == 0, done.output
        pages.append(re.sub(r"\d{4}-\d\d-\d\d.*", "", output.read_text(encoding="utf-8")))
    assert pages[0] != pages[1]
    assert pages[0] == pages[2]  # the value it was trained with


def test_a_model_that_is_no_run(place: Path, tmp_path: Path) -> None:
    model = place / "run" / "best"
    refused(run(model, "-o", tmp_path / "a.html"), "no validation data", "DATA")
    done = run(model, place / "test.tsv", "-o", tmp_path / "a.html", "--explain", 0)
    assert done.exit_code == 0, done.output
    assert "fitted on the same data" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_validation_data_that_are_gone_are_said(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(place / "run", moved, symlinks=True)
    recipe = (moved / "recipe.yaml").read_text(encoding="utf-8")
    (moved / "recipe.yaml").write_text(recipe.replace("dev.tsv", "gone.tsv"), encoding="utf-8")
    refused(run(moved, "-o", tmp_path / "a.html"), "gone.tsv: no such file")
    more = ("-o", tmp_path / "a.html", "--explain", 0)
    done = run(moved, place / "test.tsv", *more)
    assert done.exit_code == 0, done.output
    assert "The temperature is fitted on DATA itself" in done.stderr


def test_validation_data_with_an_unknown_label_are_said(place: Path, tmp_path: Path) -> None:
    moved, dev = tmp_path / "run", tmp_path / "odd.tsv"
    shutil.copytree(place / "run", moved, symlinks=True)
    recipe = (moved / "recipe.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace(str(place / "dev.tsv"), str(dev))
    (moved / "recipe.yaml").write_text(recipe, encoding="utf-8")
    dev.write_text("text\tlabel\nx\tgood\ny\tfair\n", encoding="utf-8")
    done = run(moved, place / "test.tsv", "-o", tmp_path / ":train:.html", "--explain", 0)
    assert done.exit_code == 0, done.output
    assert f"fitted on DATA itself: {dev}, line 3, column 'label': unknown label" in done.stderr
    assert f"wrote {tmp_path / ':train:.html'}" in done.stdout


def test_mistakes(place: Path, tmp_path: Path, tiny_folder: Path) -> None:
    data, output = place / "test.tsv", tmp_path / "a.html"
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text("text\tstars\nx\t1\n", encoding="utf-8")
    for arguments, said in [
        ((place / "none", data), "none"),
        ((tiny_folder, data), "not trained for a task"),
        ((place / "run", wrong), "wrong.tsv: no column 'label'"),
        ((place / "run", tmp_path / "no.tsv"), "no.tsv: no such file"),
        ((place / "run", data, "--png", wrong), "wrong.tsv: is a file"),
        ((place / "run", data, "--png", wrong / "png"), "wrong.tsv: is a file"),
        ((place / "run", data, "--device", "none"), "device 'none' cannot be used"),
    ]:
        refused(run(*arguments, "-o", output), said)
    refused(run(place / "run", data, "-o", tmp_path / "no" / "a.html"), "no such folder")
    refused(run(place / "run", data, "-o", tmp_path), "is a folder")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(place / "run" / "recipe.yaml", bare)
    refused(run(bare, data, "-o", tmp_path / "b.html"), "bare")
    assert not (tmp_path / "b.html").exists()
