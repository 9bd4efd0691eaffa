"""`pretune compare` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.bundle.bundle import save
from pretune.cli.app import app
from tests.tasks.every_task import CASES, NASTY, write


@pytest.fixture
def two(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of two classifiers, one of which always says the same."""
    folders = []
    for name, factor in (("first", 1.0), ("second", 0.0)):
        folder = tmp_path / name
        folder.mkdir()
        bundle = CASES["classify"].bundle(tiny_folder, tmp_path)
        bundle.model.classifier.weight.data *= factor
        save(bundle, folder)
        folders.append(folder)
    return folders[0], folders[1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(CASES["classify"].rows(12), tmp_path / "data.jsonl")


def run(*arguments: Any) -> Any:
    given = ["compare", *map(str, arguments), "--device", "cpu"]
    return CliRunner().invoke(app, given, env={"COLUMNS": "200"})


def test_two_models(two: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    output = tmp_path / ":train:.jsonl"
    done = run(*two, "--data", data, "--resamples", 200, "--output", output)
    assert done.exit_code == 0, done.output
    for part in ("12 examples, 95% intervals of 200 resamples", "accuracy", "mcc", "difference"):
        assert part in done.output
    assert f"wrote {output}" in done.output
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in rows] == list(range(1, 13))
    assert rows[3]["text"] == NASTY
    assert len({row["models"][1]["answer"] for row in rows}) == 1
    again = run(*two, "--data", data, "--resamples", 200, "--output", output)
    assert again.exit_code == 2
    assert "--overwrite" in again.output


def test_json(two: tuple[Path, Path], data: Path) -> None:
    done = run(*two, two[0], "--data", data, "--resamples", 200, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [r["name"] for r in found["runs"]] == [str(two[0]), str(two[1]), str(two[0])]
    assert found["runs"][2]["differences"]["accuracy"]["value"] == 0
    right = [sum_of(r["figures"]["accuracy"]["value"]) for r in found["runs"]]
    only = found["runs"][1]
    assert right[1] - right[0] == only["only_this_right"] - only["only_first_right"]


def test_other_values_of_options(two: tuple[Path, Path], data: Path) -> None:
    losses = []
    for more in ((), ("--set", "max_length=4")):
        done = run(*two, "--data", data, "--resamples", 100, "--json", *more)
        assert done.exit_code == 0, done.output
        sides = json.loads(done.stdout)["runs"]
        losses.append([side["figures"]["loss"]["value"] for side in sides])
    assert losses[0] != losses[1]
    done = run(*two, "--data", data, "--set", "max_lenth=4")
    assert done.exit_code == 2
    assert "max_length" in done.output


def sum_of(accuracy: float) -> int:
    return round(12 * accuracy)


def test_what_cannot_be_compared(
    two: tuple[Path, Path], data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save(CASES["regress"].bundle(tiny_folder, tmp_path), other)
    for arguments, said in (
        ((two[0],), "one model alone cannot be compared"),
        (two, "no validation data"),
        ((two[0], other, "--data", data), "'classify'"),
        ((two[0], tmp_path / "missing", "--data", data), "missing"),
        ((*two, "--data", data, "--output", tmp_path / "no" / "x.jsonl"), "no such folder"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert said in done.output
        assert "Traceback" not in done.output
