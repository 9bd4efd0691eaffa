"""Every shape of classification, trained: in parts and in several processes it is one batch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.bundle.bundle import load
from pretune.recipe.recipe import Recipe
from pretune.tasks.classification.multilabel import Multilabel
from pretune.training.run import resume, train_recipe
from tests.training.groups import STEADY, Together, assert_close, result_of, weights

Make = Callable[..., Recipe]

#: The `task:` section of each shape, and of each loss.
TASKS: dict[str, dict[str, Any]] = {
    "regress": {"name": "regress"},
    "multilabel": {"name": "multilabel"},
    "choose": {"name": "choose"},
    "weights": {"name": "classify", "class_weights": "auto"},
    "focal": {
        "name": "classify",
        "focal_gamma": 2.0,
        "label_smoothing": 0.1,
        "class_weights": {"bad": 3.0},
    },
}


def row(chance: random.Random) -> dict[str, Any]:
    """A record that every task can read, of any length, with two to four choices."""
    word = chance.choice(["good", "bad", "bad"])
    count = chance.randint(2, 4)
    label = chance.randrange(count)
    others = ["the film", "un", "film the un x1"]
    text = " ".join(["the film"] * chance.randint(0, 4) + [word])
    return {
        "text": text,
        "context": text,
        "label": label,
        "word": word,
        "score": 2.0 if word == "good" else -1.0,
        "labels": [word] + ["long"] * (len(text) > 20),
        "choices": [word if i == label else others[i % 3] for i in range(count)],
    }


@pytest.fixture
def make(toy_recipe: Make, tmp_path: Path) -> Make:
    """A recipe for one of TASKS."""
    chance = random.Random(1)
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row(chance)) for _ in range(78)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def of(name: str, **changes: Any) -> Recipe:
        values = toy_recipe(**{**STEADY, "train__max_steps": 3, **changes}).to_dict()
        values["task"] = {**TASKS[name], "max_length": 32}
        columns = {"label": "word"} if TASKS[name]["name"] == "classify" else {}
        values["data"] = {"train": str(path), "validation": 14 / 78, "columns": columns}
        return Recipe.of(values)

    return of


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("batch", "parts"), [(32, 4), (29, 4)], ids=["even", "uneven"])
def test_parts_are_the_whole_batch(
    name: str, batch: int, parts: int, make: Make, tmp_path: Path
) -> None:
    one = make(name, train__batch_size=batch)
    result = train_recipe(one, quiet=True)
    assert result.steps == 3
    split = one.changed({"train.accumulate": parts, "output": str(tmp_path / "split")})
    found = train_recipe(split, quiet=True)
    assert_close(split.output, weights(one.output))
    assert found.metrics == pytest.approx(result.metrics, abs=1e-4)


@pytest.mark.parametrize("name", ["regress", "multilabel", "choose", "focal"])
def test_processes_are_one(name: str, make: Make, tmp_path: Path, together: Together) -> None:
    one = make(name, train__batch_size=13)
    result = train_recipe(one, quiet=True)
    several = one.changed({"output": str(tmp_path / "several")})
    together.train(2, several)
    assert_close(several.output, weights(one.output))
    found = result_of(several.output)["metrics"]
    assert found.keys() == result.metrics.keys()
    for key, value in result.metrics.items():
        # Scores that all lie close together make correlations of their last digits.
        near = 2e-3 if key in ("pearson", "spearman") else 1e-4
        assert found[key] == pytest.approx(value, abs=near), key


@pytest.mark.parametrize("name", ["regress", "multilabel", "choose"])
def test_learns(name: str, make: Make) -> None:
    recipe = make(
        name,
        train__max_steps=None,
        train__epochs=20,
        train__learning_rate=5e-3,
        train__eps=1e-8,
        train__clip=1.0,
    )
    metrics = train_recipe(recipe, quiet=True).metrics
    best = {"regress": "pearson", "multilabel": "micro_f1", "choose": "accuracy"}[name]
    assert metrics[best] > 0.9


def test_thresholds_of_the_saved_model_are_those_of_its_figures(make: Make) -> None:
    recipe = make("multilabel", train__max_steps=4, train__eval_every=2)
    result = train_recipe(recipe, quiet=True)
    task = load(Path(recipe.output) / "best").task
    assert isinstance(task, Multilabel)
    figures = result.details["per_class"]
    assert [figures[label]["threshold"] for label in task.labels] == task.thresholds
    assert task.thresholds != [0.5] * len(task.labels)


def test_a_resumed_run_keeps_its_thresholds(make: Make, tmp_path: Path, together: Together) -> None:
    one = make("multilabel", train__max_steps=4, train__eval_every=2)
    train_recipe(one, quiet=True)
    two = one.changed({"output": str(tmp_path / "stopped")})
    together.train(1, two, stop_at=3)
    kept = load(Path(two.output) / "last").task
    assert isinstance(kept, Multilabel)
    assert kept.thresholds != [0.5] * len(kept.labels)
    resume(two.output, quiet=True)
    again, whole = (load(Path(run.output) / "last").task for run in (two, one))
    assert again is not None
    assert whole is not None
    assert again.state() == whole.state()


@pytest.mark.parametrize("name", ["regress", "choose"])
def test_a_frozen_backbone_trains_its_head(name: str, make: Make) -> None:
    """Choices are several vectors an example: what the head reads cannot be kept by example."""
    recipe = make(name, train__freeze="backbone", train__max_steps=None, train__epochs=3)
    assert train_recipe(recipe, quiet=True).steps > 3
