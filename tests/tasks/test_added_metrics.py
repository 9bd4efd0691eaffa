"""Metrics that packages add and recipes name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

import pretune
from pretune.bundle.bundle import load
from pretune.errors import RecipeError, RunError
from pretune.tasks.added_metrics import METRICS, AllMetrics, lower_is_better
from pretune.tasks.features import featurize
from pretune.tasks.regression.regress import Regress, RegressOptions
from pretune.training.validation import better, evaluate_features
from tests.plugins import forget_plugins, install_plugin
from tests.tasks.every_task import CASES, write

SIGNS = """
class Signs:
    lower_is_better = {"edit_distance": True, "unloss": False}

    def __init__(self, task, features):
        self.task, self.features, self.right, self.count = task, features, 0, 0

    def update(self, outputs, batch):
        same = (outputs[:, 0] > 0) == (batch.targets["score"] > 0)
        self.right += int(same.sum())
        self.count += len(same)

    def merge(self, other):
        self.right += other.right
        self.count += other.count

    def result(self):
        return {"sign_accuracy": self.right / max(self.count, 1), "pearson": -7.0}

    def details(self):
        return {"count": self.count, "task": self.task.name}
"""


@pytest.fixture
def _signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    site.mkdir()
    line = {"pretune.metrics": "signs = pretune_signs:Signs"}
    install_plugin(site, monkeypatch, "pretune-signs", SIGNS, line)
    forget_plugins(METRICS)
    yield
    monkeypatch.undo()
    forget_plugins(METRICS)


def options(**more: Any) -> RegressOptions:
    return RegressOptions(max_length=32, **more)


def test_options_without_metrics_are_written_as_before_there_were_any() -> None:
    assert "metrics" not in options().model_dump(mode="json")
    assert "metrics" not in options().model_dump_json()
    assert options(metrics=["signs"]).model_dump(mode="json")["metrics"] == ["signs"]


@pytest.mark.usefixtures("_signs")
def test_an_evaluation_has_the_figures_of_added_metrics(tiny_folder: Path) -> None:
    torch.manual_seed(0)
    bundle = load(tiny_folder, task=Regress(options(metrics=["signs"])))
    assert bundle.task is not None
    features = featurize(bundle.task, CASES["regress"].records(), bundle.tokenizer)
    found = evaluate_features(bundle.task, bundle.model, features)
    wanted = []
    with torch.no_grad():
        for i in range(len(features)):
            batch = features.batch(torch.tensor([i]).numpy())
            wanted.append(bool((bundle.model(batch)[0, 0] > 0) == (batch.targets["score"][0] > 0)))
    assert found.metrics["sign_accuracy"] == sum(wanted) / len(wanted)
    assert found.metrics["pearson"] >= -1  # a task's own figure is not replaced
    assert found.details["signs"] == {"count": 24, "task": "regress"}


@pytest.mark.usefixtures("_signs")
def test_evaluations_of_several_processes_are_merged() -> None:
    task = Regress(options(metrics=["signs"]))
    mine, other = AllMetrics.of(task), AllMetrics.of(task)
    mine.added["signs"].right, mine.added["signs"].count = 1, 2  # type: ignore[attr-defined]
    other.added["signs"].right, other.added["signs"].count = 3, 6  # type: ignore[attr-defined]
    mine.merge(other)
    assert mine.result()["sign_accuracy"] == 0.5


@pytest.mark.usefixtures("_signs")
def test_the_best_checkpoint_can_go_by_an_added_metric(tiny_folder: Path, tmp_path: Path) -> None:
    data = write(CASES["regress"].rows(8), tmp_path / "data.jsonl")
    recipe = {
        "task": {"name": "regress", "metrics": ["signs"], "max_length": 16},
        "model": {"from": str(tiny_folder)},
        "data": {"train": str(data), "validation": str(data)},
        "train": {"epochs": 1, "best": "sign_accuracy"},
        "output": str(tmp_path / "run"),
    }
    result = pretune.train(recipe)
    assert 0 <= result.metrics["sign_accuracy"] <= 1
    recipe["train"] = {"epochs": 1, "best": "sign_acuracy"}
    recipe["output"] = str(tmp_path / "other")
    with pytest.raises(RunError, match=r"train.best.*sign_acuracy.*\n.*sign_accuracy"):
        pretune.train(recipe)


@pytest.mark.usefixtures("_signs")
def test_a_metric_states_which_of_its_figures_are_better_when_lower() -> None:
    assert lower_is_better("edit_distance")
    assert not lower_is_better("sign_accuracy")
    assert not lower_is_better("unloss")  # its name would say so
    assert better("edit_distance", 1.0, 2.0)
    # Where nothing is stated, the name decides.
    assert lower_is_better("validation_loss")
    assert lower_is_better("kl")
    assert not lower_is_better("accuracy")


@pytest.mark.usefixtures("_signs")
def test_a_metric_that_cannot_be_imported_does_not_matter_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = EntryPoint("broken", "no_such_module:Metric", "pretune.metrics")
    monkeypatch.setitem(vars(METRICS), "plugins", {"broken": point, **METRICS.plugins})
    assert lower_is_better("edit_distance")


def test_a_metric_that_nobody_provides_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"no metric is called 'signs'\n.*No installed package"):
        AllMetrics.of(Regress(options(metrics=["signs"])))
