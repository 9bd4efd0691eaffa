"""A run's reference: scored once, kept in the run folder, exact after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pretune.errors import RunError
from pretune.training import run
from pretune.training.reference_scores import REFERENCE_FILE, keep_scores, read_scores
from pretune.training.run import resume, train_recipe
from tests.tasks.alignment.preferences import recipe, saved


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "last/model.safetensors")


class _StopAfter:
    """Asks a run to stop once it was asked `updates` times."""

    def __init__(self, updates: int) -> None:
        self.left = updates

    def __call__(self, *_: Any) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("lost", [None, "missing", "damaged"])
def test_goes_on_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str | None
) -> None:
    saved(tmp_path / "sft")
    whole = recipe("dpo", tmp_path, output=str(tmp_path / "whole"))
    train_recipe(whole, quiet=True)
    # Stopped in the middle of the second epoch.
    stop = _StopAfter(4)
    monkeypatch.setattr(run.StopRequest, "__call__", lambda self: stop())
    with pytest.raises(run.Interrupted):
        train_recipe(recipe("dpo", tmp_path), quiet=True)
    monkeypatch.undo()
    file = tmp_path / "run" / REFERENCE_FILE
    if lost == "missing":
        file.unlink()
    elif lost == "damaged":  # other numbers, which are numbers
        with safe_open(file, framework="numpy") as opened:
            known = opened.metadata()
        scores = load_file(file)
        scores["train"][0] -= 1
        save_file(scores, file, known)
    resume(tmp_path / "run", quiet=True)
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_kept_is_read_where_it_is_whole_and_of_the_same_data(tmp_path: Path) -> None:
    scores = {"train": np.ones((3, 2), dtype=np.float32)}
    keep_scores(tmp_path, "key", scores)
    read = read_scores(tmp_path, "key")
    assert read is not None
    assert np.array_equal(read["train"], scores["train"])
    assert read_scores(tmp_path, "of other data") is None
    keep_scores(tmp_path, "key", {"train": np.array([[np.inf]])})
    assert read_scores(tmp_path, "key") is None
    (tmp_path / REFERENCE_FILE).unlink()
    (tmp_path / REFERENCE_FILE).mkdir()
    with pytest.raises(RunError, match="is a folder"):
        keep_scores(tmp_path, "key", scores)


def test_another_folder_is_the_reference(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    saved(tmp_path / "other", seed=1)
    changes = {"task.reference": str(tmp_path / "other"), "train.learning_rate": 1e-9}
    result = train_recipe(recipe("dpo", tmp_path, **changes), quiet=True)
    assert abs(result.metrics["reward_margin"]) > 1e-3


def test_a_reference_without_numbers_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "sft")

    def broken(*arguments: Any, **options: Any) -> Any:
        return np.full((6, 2), np.nan, dtype=np.float32)

    monkeypatch.setattr(run, "reference_scores", broken)
    with pytest.raises(RunError, match="not finite"):
        train_recipe(recipe("dpo", tmp_path), quiet=True)
