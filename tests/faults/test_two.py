"""Two processes never train into one folder at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.errors import RunError
from pretune.recipe.recipe import Recipe
from pretune.training import run
from pretune.training.checkpoint import RunCheckpoints
from pretune.training.run import train_recipe
from pretune.training.run_folder import RunFolder
from tests.faults.runs import Running, neighbour, wait_until

_resume = neighbour("outcomes")
Start = Callable[..., Running]
RecipeFile = Callable[..., Path]
FOR_EVER = 600.0


@pytest.fixture
def held(start: Start, recipe_file: RecipeFile, tmp_path: Path) -> Running:
    """A training that stands still in its third checkpoint."""
    marker = tmp_path / "now"
    stalled = {
        "at": "pretune.training.checkpoint:write_manifest",
        "call": 3,
        "seconds": FOR_EVER,
        "marker": str(marker),
    }
    running = start("train", recipe_file(tmp_path / "run", train__max_steps=12), stalled=stalled)
    assert wait_until(marker.exists, running), running.said()
    return running


def everything(run: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_the_second_is_refused_and_touches_nothing(
    held: Running, start: Start, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    run, recipe = tmp_path / "run", tmp_path / "run.yaml"
    before = everything(run)
    for argv in (("--resume", run), (recipe, "--overwrite")):
        second = start("train", *argv)
        assert second.wait() == 2
        assert f"{run}: process {held.pid} on " in second.said()
        assert "is training into this folder now" in second.said()
        assert "Traceback" not in second.said()
        assert everything(run) == before


@pytest.mark.slow
def test_a_killed_one_is_in_nobodys_way(
    held: Running, start: Start, tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    held.kill(signal.SIGKILL)
    held.wait()
    assert (run / ".lock").exists()
    last = start("train", "--resume", run)
    assert last.wait() == 0, last.said()
    _resume.assert_alike(_resume.outcome(run), uninterrupted(train__max_steps=12))


def test_of_two_new_ones_the_later_is_refused(
    toy_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no folder; while one read its data, the other began and finished."""
    recipe = toy_recipe(train__max_steps=1)
    original, first = run.read_data, threading.Event()

    def reading(asked: Recipe) -> Any:
        if not first.is_set():
            first.set()
            train_recipe(recipe, quiet=True)
        return original(asked)

    monkeypatch.setattr(run, "read_data", reading)
    with pytest.raises(RunError, match="already holds a finished run of this very recipe"):
        train_recipe(recipe, quiet=True)
    assert RunFolder(recipe.output).result() is not None


@pytest.mark.slow
def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        script = (
            "import sys; from pretune.training.run_folder import RunFolder\n"
            "with RunFolder(sys.argv[1]).locked(): pass"
        )
        other = [sys.executable, "-c", script, str(folder.path)]
        done = subprocess.run(other, capture_output=True, text=True)
        assert "is training into this folder now" in done.stderr
    assert subprocess.run(other).returncode == 0


def test_what_is_under_way_is_finished_when_the_run_fails(
    toy_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process ends after an error, and a thread that writes with it."""
    gate = threading.Event()
    original = RunCheckpoints._write

    def slow(self: RunCheckpoints, *args: Any) -> None:
        gate.wait(0.5)
        original(self, *args)

    def fail(*args: Any, **options: Any) -> None:
        raise RunError("the numbers went wrong")

    monkeypatch.setattr(RunCheckpoints, "_write", slow)
    recipe = toy_recipe(train__background_save=True, train__save_every=1)
    monkeypatch.setattr("pretune.training.logging.Reporter.evaluation", fail)
    with pytest.raises(RunError, match="went wrong"):
        train_recipe(recipe, quiet=True)
    last = Path(recipe.output) / "checkpoints" / "step-000005"
    assert last.is_dir()  # the evaluation is after update 6
