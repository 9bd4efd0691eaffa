"""The example plug-in, installed as a package: its task, family, metric and recipe by name."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.data.batch import PackedBatch
from tests.cli.several import Ended, several

PLUGIN = Path(__file__).parent.parent / "examples" / "plugin"


def pretune(folder: Path, plugin: Path | None, *commands: list[Any]) -> list[Ended]:
    """Run commands where the plug-in is installed, or is not."""
    paths = [*([str(plugin)] if plugin else []), os.environ.get("PYTHONPATH", "")]
    return several(*commands, cwd=folder, PYTHONPATH=os.pathsep.join(paths))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the plug-in to, without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site-packages"
    shutil.copytree(PLUGIN, source)  # the build writes beside what it builds
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    how = ["--no-deps", "--no-build-isolation", "--no-index", "--target", target]
    subprocess.run([*pip, *how, source], check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def place(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the plug-in's recipe, task, family and metric."""
    folder = tmp_path_factory.mktemp("place")
    words = ["film", "plot", "cast", "score"]
    pairs = [
        {"text_better": f"a good {word}" + " indeed" * (i % 3), "text_worse": f"a bad {word}"}
        for i in range(10)
        for word in words
    ]
    rows = [
        {"text_a": "a bad film", "text_b": "a good film"},
        {"text_a": "a good plot", "text_b": "a bad plot"},
    ]
    for name, records in (("pairs", pairs), ("new", rows)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    small = [
        "train.epochs=3",
        "train.batch_size=4",
        "task.max_length=16",
        "train.best=score_margin",
    ]
    training = ["train", "rank", "model.from=relu2-bert-tiny", *small, "train.learning_rate=1e-3"]
    (done,) = pretune(folder, plugin, training)
    assert done.returncode == 0, done.stderr
    return folder


def test_evaluate_predict_report(place: Path, plugin: Path) -> None:
    figures, answers, report, recipes = pretune(
        *(place, plugin),
        ["evaluate", "runs/rank", "pairs.jsonl", "--json"],
        ["predict", "runs/rank", "--file", "new.jsonl", "--json"],
        ["report", "runs/rank", "--explain", "1"],
        ["recipes"],
    )
    assert not any(done.returncode for done in (figures, answers, report, recipes))
    metrics = json.loads(figures.stdout)["metrics"]
    assert metrics["pair_accuracy"] == 1.0
    assert metrics["score_margin"] > 1
    pairs = [json.loads(line) for line in answers.stdout.splitlines()]
    assert [answer["better"] for answer in pairs] == ["b", "a"]
    for answer in pairs:
        assert (answer["score_a"] > answer["score_b"]) == (answer["better"] == "a")
    page = (place / "runs/rank/report.html").read_text(encoding="utf-8")
    assert "pair_accuracy" in page
    assert "Which of two documents is better?" in recipes.stdout


def test_files_name_the_package(place: Path) -> None:
    model = place / "runs/rank/best"
    assert json.loads((model / "config.json").read_text(encoding="utf-8"))["hidden_act"] == "relu2"
    for name in ("config.json", "pretune.json"):
        assert "pretune-ranking" in (model / name).read_text(encoding="utf-8")


def test_without_the_package_the_error_names_it(place: Path) -> None:
    asked, trained = pretune(place, None, ["predict", "runs/rank", "x"], ["train", "rank"])
    assert asked.returncode == trained.returncode == 2
    assert "pip install pretune-ranking" in asked.stderr
    assert "'rank': no such recipe or file" in trained.stderr


def test_the_loss_is_that_of_ranknet(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Burges et al. 2005, equation 3 with a target of 1: C = log(1 + exp(-(s_i - s_j)))."""
    monkeypatch.syspath_prepend(str(plugin))
    from pretune_ranking.family import squared_relu
    from pretune_ranking.task import Rank, RankOptions

    batch = PackedBatch.of([[1], [2], [3], [4]])
    batch = replace(batch, targets={"better": torch.tensor([0, 1])})
    outputs = torch.tensor([[2.0], [0.5], [1.0], [4.0]])
    loss = Rank(RankOptions()).loss(outputs, batch)
    wanted = sum(math.log1p(math.exp(-margin)) for margin in (1.5, 3.0))
    assert loss.count == 2
    assert float(loss.sum) == pytest.approx(wanted, rel=1e-6)
    assert squared_relu(torch.tensor([-2.0, 3.0])).tolist() == [0.0, 9.0]
