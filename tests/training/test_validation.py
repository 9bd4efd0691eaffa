"""Evaluating: what cannot be scored is said, and no figures are made of nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pretune
from pretune.data.records import Records
from pretune.errors import DataError, RunError
from pretune.inference.runtime import choose_device
from pretune.recipe.schema import TrainSection
from pretune.tasks.features import featurize
from pretune.training.loop import Trainer
from tests.tasks.every_task import CASES, Rows, write

ASKED = [{"role": "user", "content": "good?"}]
#: Of each task that can pass a record over, one that it does.
UNUSABLE: dict[str, Rows] = {
    "chat": [{"turns": "a"}],
    "instruct": [{"messages": ASKED}],
    "mask_lm": [{"text": ""}],
    "mask_lm_each": [{"text": ""}],
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_where_nothing_is_left_there_is_nothing_to_evaluate_on(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    bundle = CASES[name].bundle(tiny_folder, tmp_path)
    data = write(UNUSABLE[name], tmp_path / "odd.jsonl")
    with pytest.raises(DataError, match=r"odd.jsonl: nothing to evaluate on"):
        pretune.evaluate(bundle, data)


def test_what_was_passed_over_is_said_as_in_a_training(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = CASES["chat"].bundle(tiny_folder, tmp_path)
    rows: list[dict[str, Any]] = [{"turns": ["a"]}, {"turns": ["good", "bad"]}]
    data = write(rows, tmp_path / "some.jsonl")
    capsys.readouterr()
    quiet = pretune.evaluate(bundle, data)
    assert capsys.readouterr().err == ""
    loud = pretune.evaluate(bundle, data, quiet=False)
    shown = capsys.readouterr().err
    assert "skipped:" in shown
    assert "some.jsonl, line 1: no reply in it" in shown
    assert loud.metrics == quiet.metrics
    assert loud.count == 1


def test_a_training_does_not_choose_its_best_model_by_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    case = CASES["chat"]
    bundle = case.bundle(tiny_folder, tmp_path)
    task = bundle.task
    assert task is not None
    train = featurize(task, case.records(), bundle.tokenizer)
    odd = Records([{"turns": ["a"]}], "odd.jsonl", range(1, 2), ("turns",))
    none = featurize(task, odd, bundle.tokenizer, evaluation=True)
    with pytest.raises(RunError, match="nothing to evaluate on"):
        Trainer(task, bundle.model, train, none, options=TrainSection())


def test_a_device_without_numbers_cannot_be_used() -> None:
    with pytest.raises(RunError, match="device 'meta' cannot be used"):
        choose_device("meta")
