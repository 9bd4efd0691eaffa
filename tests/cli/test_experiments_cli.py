"""`pretune plan`, `sweep` and `runs` as a person uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import pretune


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    rows = [f"{'the ' * (i % 5)}{w} film\t{w}" for i in range(20) for w in ("good", "bad")]
    (folder / "films.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


def test_from_a_plan_to_a_list_of_runs(place: Path, tiny_folder: Path) -> None:
    recipe = ["films.tsv", f"model.from={tiny_folder}", "task.max_length=16", "train.max_steps=4"]
    done = pretune("plan", *recipe, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["updates"] == 4
    assert [path.name for path in place.iterdir()] == ["films.tsv"]

    over = ["--over", "train.learning_rate=log:1e-5..1e-2", "--over", "train.batch_size=4,8"]
    done = pretune(
        "sweep", *recipe, "output=runs/s", *over, "--trials", "2", "--metric", "loss", cwd=place
    )
    assert done.returncode == 0, done.stderr
    assert "2 trials in runs/s; loss is to be minimized" in done.stdout
    assert "repeat the best: pretune train runs/s/best.yaml" in done.stdout
    assert "trial 1 (2 of 2): train.learning_rate=" in done.stderr

    done = pretune("runs", "--sort", "loss", "--json", cwd=place)
    found = json.loads(done.stdout)["runs"]
    assert {run["folder"] for run in found} == {"runs/s/trial-0", "runs/s/trial-1"}
    assert found[0]["metrics"]["loss"] <= found[1]["metrics"]["loss"]
    assert "finished" in pretune("runs", cwd=place).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("runs", "nowhere"), "no such folder"),
        (("sweep", "films.tsv"), "nothing to try"),
        (("sweep", "films.tsv", "--over", "train.epochs=3"), "leaves nothing to try"),
        (("plan", "nowhere.tsv"), "no such recipe or file"),
    ],
)
def test_mistakes_are_sentences(place: Path, arguments: tuple[str, ...], said: str) -> None:
    done = pretune(*arguments, cwd=place)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert done.stdout == ""
