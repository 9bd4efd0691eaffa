from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from pretune.bundle.bundle import load, outline, save
from pretune.errors import CheckpointError
from pretune.inference.predict import Predictor
from tests.tasks.every_task import CASES

HUGE = 10**400
Make = Callable[..., Path]


def short(value: Any) -> str:
    return str(value)[:20]


@pytest.fixture
def published(tiny_folder: Path, tmp_path: Path) -> Make:
    """A tiny model as transformers saves it, with other entries of its `config.json`."""

    def make(kind: str, **entries: Any) -> Path:
        config = transformers.BertConfig.from_pretrained(
            tiny_folder, num_labels=len(entries.get("id2label", "ab"))
        )
        getattr(transformers, kind)(config).save_pretrained(tmp_path / "model")
        shutil.copy(tiny_folder / "vocab.txt", tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        said = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**said, **entries}), encoding="utf-8")
        return path.parent

    return make


@pytest.fixture
def saved(tiny_folder: Path, tmp_path: Path) -> Make:
    """A model of ours with other entries of what its task learned."""

    def make(name: str, **entries: Any) -> Path:
        (tmp_path / "saved").mkdir()
        save(CASES[name].bundle(tiny_folder, tmp_path), tmp_path / "saved")
        path = tmp_path / "saved" / "pretune.json"
        said = json.loads(path.read_text(encoding="utf-8"))
        said["state"] |= entries
        path.write_text(json.dumps(said), encoding="utf-8")
        return path.parent

    return make


@pytest.mark.parametrize(
    "value", [float("inf"), float("nan"), HUGE, -HUGE, "high", [0.5], True], ids=short
)
def test_thresholds_in_config(published: Make, value: Any) -> None:
    folder = published("BertForQuestionAnswering", no_answer_threshold=value)
    for use in (load, outline):
        with pytest.raises(CheckpointError, match=r"config\.json: no_answer_threshold is") as e:
            use(folder)
        assert len(str(e.value)) < 400


@pytest.mark.parametrize("value", [-2.5, 3, None])
def test_thresholds_that_are_right(published: Make, value: float | None) -> None:
    task = load(published("BertForQuestionAnswering", no_answer_threshold=value)).task
    assert task is not None
    assert task.state() == {"threshold": value or 0.0}
    assert task.options.no_answer == (value is not None)


@pytest.mark.parametrize(
    ("name", "entry", "value"),
    [
        ("answer_none", "threshold", HUGE),
        ("answer_none", "threshold", float("inf")),
        ("multilabel", "thresholds", [0.5, HUGE, 0.5]),
        ("multilabel", "thresholds", [0.5, 0.5, float("nan")]),
        ("classify", "weights", [1, 1, HUGE]),
        ("classify", "labels", ["a", "a", "b"]),
        ("multilabel", "labels", ["a", "b", "a"]),
        ("classify", "labels", "abc"),
        ("classify", "labels", ["a", "b", 3]),
        ("tag", "labels", ["O", "B-PER", "I-PER", "B-PER", "I-X"]),
    ],
    ids=short,
)
def test_what_a_task_file_says(saved: Make, name: str, entry: str, value: Any) -> None:
    folder = saved(name, **{entry: value})
    for use in (load, outline):
        with pytest.raises(CheckpointError, match=rf"pretune\.json: .*\b{entry}\b") as e:
            use(folder)
        assert len(str(e.value)) < 500


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"0": "a", "1": "a", "2": "x"}, "id2label has 'a' twice"),
        ({"1": "a", "2": "b", "3": "c"}, "id2label has 3 labels, but one has the number '3'"),
        ({"0": "a", "1": "b", "x" * 9**5: "c"}, "id2label has 3 labels"),
    ],
    ids=["twice", "from 1", "no number"],
)
def test_names_of_outputs(published: Make, kind: str, names: dict[str, str], message: str) -> None:
    folder = published(kind, id2label=names)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}") as e:
        load(folder)
    assert len(str(e.value)) < 400


def test_names_in_any_order_are_those_of_their_numbers(published: Make) -> None:
    names = {"2": "c", "0": "a", "1": "b"}
    predictor = Predictor(load(published("BertForSequenceClassification", id2label=names)))
    (answer,) = predictor.predict(predictor.records(["good film"]))
    assert list(answer.to_dict()["scores"]) == ["a", "b", "c"]
