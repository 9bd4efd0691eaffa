"""Recipes of Chinese and of long texts: from the format of their data to an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest

import pretune
from pretune.recipe.recipe import Recipe
from pretune.training.run import train_recipe

NUMBER, TEXT = datasets.Value("int64"), datasets.Value("string")
GOOD, BAD = "好看" * 40, "不" * 70


@dataclass(frozen=True)
class Published:
    """Data as the Hub has them, and what the recipe makes of their labels.

    Attributes:
        columns: with the kind of each.
        row: the record of a number.
        labels: in the model's order.
        asked: what the model is asked.
    """

    columns: dict[str, Any]
    row: Callable[[int], dict[str, Any]]
    labels: list[str]
    asked: Any = GOOD


def text(i: int) -> str:
    return GOOD if i % 2 else BAD


DATA = {
    "imdb": Published(
        {"text": TEXT, "label": datasets.ClassLabel(names=["neg", "pos"])},
        lambda i: {"text": f"{['bad', 'good'][i % 2]} film<br /><br />" * 12, "label": i % 2},
        ["negative", "positive"],
    ),
    "chnsenticorp": Published(
        {"text": TEXT, "label": NUMBER},
        lambda i: {"text": text(i), "label": i % 2},
        ["negative", "positive"],
    ),
    "thucnews": Published(
        {"text": TEXT, "label": datasets.ClassLabel(names=["体育", "娱乐", "家居"])},
        lambda i: {"text": f"{'电影'[: i % 3]}{text(i)}", "label": i % 3},
        ["体育", "娱乐", "家居"],
    ),
    "ocnli": Published(
        {
            "sentence1": TEXT,
            "sentence2": TEXT,
            "label": datasets.ClassLabel(names=["neutral", "entailment", "contradiction"]),
            "idx": datasets.Value("int32"),
        },
        lambda i: {"sentence1": "电影好看", "sentence2": text(i)[:9], "label": i % 3, "idx": i},
        ["neutral", "entailment", "contradiction"],
        ("电影好看", "不好看"),
    ),
}


def small(tiny_folder: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    """A tiny model with 64 positions, for two updates."""
    return {
        "model.from": str(tiny_folder),
        "task.max_length": 48,
        "train.max_steps": 2,
        "train.device": "cpu",
        "output": str(tmp_path / "run"),
        **more,
    }


@pytest.mark.parametrize("name", DATA)
def test_data_of_the_hub_become_answers(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, asked = DATA[name], list[Any]()

    def load_dataset(place: str, config: str | None = None, *, split: str) -> Any:
        asked.append((place, config, split))
        rows = [own.row(i) for i in range(30)]
        columns = {key: [row[key] for row in rows] for key in own.columns}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(own.columns))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    recipe = Recipe.load(name)
    result = train_recipe(recipe.changed(small(tiny_folder, tmp_path)), quiet=True)
    assert [split for *_, split in asked] == ["train", "validation"][: len(asked)]
    assert asked[0][0] == recipe.data.train.split(":")[0]
    bundle = pretune.load(tmp_path / "run")
    task: Any = bundle.task
    assert task.labels == own.labels
    assert task.options.long == ("cut" if name == "ocnli" else "head_tail")
    (answer,) = pretune.predict(bundle, [own.asked])
    assert [*answer.to_dict()["scores"]] == own.labels
    assert "accuracy" in result.metrics


#: The files that the authors of two sets publish, as a person has them.
IMDB = "review,sentiment\n" + "".join(
    f'"A {word} film, ""really"".<br />",{label}\n'
    for word, label in [("bad", "negative"), ("good", "positive")] * 10
)
OCNLI = [
    {
        "level": "easy",
        "sentence1": "电影好看",
        "sentence2": text(i)[:8],
        "label": ["neutral", "entailment", "contradiction", "-"][i % 4],
        "label0": None,
        "id": i,
    }
    for i in range(24)
]


def test_imdb_as_a_table_of_reviews(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "imdb.csv").write_text(IMDB, encoding="utf-8")
    columns = {"data.columns": {"text": "review", "label": "sentiment"}}
    data = {"data.train": str(tmp_path / "imdb.csv"), **columns}
    recipe = Recipe.load("imdb").changed(small(tiny_folder, tmp_path, **data))
    train_recipe(recipe, quiet=True)
    (answer,) = pretune.predict(str(tmp_path / "run"), ["a good film"])
    assert [*answer.to_dict()["scores"]] == ["negative", "positive"]


def test_ocnli_as_its_authors_publish_it(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.50k.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in OCNLI), encoding="utf-8")
    data = {"data.train": str(path), "data.validation": 0.2}
    recipe = Recipe.load("ocnli").changed(small(tiny_folder, tmp_path, **data))
    with pytest.raises(pretune.PretuneError, match="'-'") as caught:
        train_recipe(recipe, quiet=True)
    assert "data.errors=skip" in str(caught.value)
    train_recipe(recipe.changed({"data.errors": "skip"}), quiet=True)
    facts = json.loads((tmp_path / "run/result.json").read_text(encoding="utf-8"))["data"]
    assert facts["train"]["left_out"] == 6
    (answer,) = pretune.predict(str(tmp_path / "run"), [("电影好看", "不好看")])
    assert [*answer.to_dict()["scores"]] == ["neutral", "entailment", "contradiction"]
