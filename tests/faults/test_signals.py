"""SIGINT, SIGTERM, SIGHUP: stopped with everything saved, or at once with nothing torn."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Running, assert_sound, neighbour, steps_of, wait_until

_resume = neighbour("outcomes")
outcome, assert_alike = _resume.outcome, _resume.assert_alike

Start = Callable[..., Running]
RecipeFile = Callable[..., Path]
BOTH = pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM],
    ids=lambda number: number.name,
)
MOMENTS = pytest.mark.parametrize(
    ("number", "where", "background"),
    [
        pytest.param(
            *(signal.SIGINT, "pretune.training.checkpoint:write_manifest", False),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(signal.SIGTERM, "pretune.training.checkpoint:write_manifest", True),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(signal.SIGINT, "pretune.training.loop:evaluate_features", True),
            marks=pytest.mark.slow,
        ),
        (signal.SIGTERM, "pretune.training.loop:evaluate_features", False),
    ],
    ids=["INT-writing", "TERM-writing-beside", "INT-evaluating", "TERM-evaluating"],
)
#: Longer than a test waits: only what does not wait for it comes to an end.
FOR_EVER = 600.0

WRITING = "pretune.training.checkpoint:write_manifest"
READING = "pretune.training.run:read_data"


@pytest.fixture
def begin(start: Start, recipe_file: RecipeFile, tmp_path: Path) -> Callable[..., Running]:
    """Start the run, or go on with it; a call of a function in it takes so long."""

    def make(at: str, call: int, seconds: float, **changes: Any) -> Running:
        run = tmp_path / "run"
        argv: tuple[Any, ...] = ("--resume", run)
        if not (run / "recipe.yaml").exists():
            argv = (recipe_file(run, train__max_steps=12, **changes),)
        marker = tmp_path / "now"
        marker.unlink(missing_ok=True)
        stalled = {"at": at, "call": call, "seconds": seconds, "marker": str(marker)}
        running = start("train", *argv, stalled=stalled)
        assert wait_until(marker.exists, running), running.said()
        return running

    return make


def assert_goes_on(
    start: Start, tmp_path: Path, uninterrupted: Callable[..., dict[str, Any]]
) -> None:
    run = tmp_path / "run"
    assert_sound(run)
    assert not (run / "result.json").exists()
    last = start("train", "--resume", run)
    assert last.wait() == 0, last.said()
    assert_alike(outcome(run), uninterrupted(train__max_steps=12))
    assert [path.name for path in run.rglob(".*.tmp")] == []


@pytest.mark.parametrize(
    ("number", "where", "background"),
    [
        *MOMENTS.args[1],
        pytest.param(
            *(signal.SIGHUP, "pretune.training.loop:evaluate_features", False),
            marks=pytest.mark.slow,
        ),
    ],
    ids=[*MOMENTS.kwargs["ids"], "HUP-evaluating"],
)
def test_the_first_saves_and_the_run_goes_on(
    number: int,
    where: str,
    background: bool,
    begin: Any,
    start: Start,
    tmp_path: Path,
    uninterrupted: Callable[..., dict[str, Any]],
) -> None:
    """While it writes or evaluates for a moment."""
    changes = {"train__background_save": background}
    running = begin(where, 2, 0.5, **changes)
    running.kill(number)
    assert running.wait() == 128 + number
    said, run = running.said(), tmp_path / "run"
    assert "stopping after this update" in said
    assert f"pretune train --resume {run}" in said
    assert "Traceback" not in said
    assert f"stopped after {max(steps_of(run))} updates" in said
    assert_goes_on(start, tmp_path, uninterrupted)


@pytest.mark.slow
@MOMENTS
def test_the_second_does_not_wait(
    number: int,
    where: str,
    background: bool,
    begin: Any,
    start: Start,
    tmp_path: Path,
    uninterrupted: Callable[..., dict[str, Any]],
) -> None:
    """Not for a checkpoint nor an evaluation that would take for ever; nothing is damaged."""
    changes = {"train__background_save": background}
    running = begin(where, 2, FOR_EVER, **changes)
    before = steps_of(tmp_path / "run")
    running.kill(number)
    assert wait_until(lambda: "stopping after this update" in running.said(), running)
    running.kill(number)
    assert running.wait() == 128 + number
    assert "Traceback" not in running.said()
    # One written beside may have come to its end in between, and older ones gone for it.
    assert max(steps_of(tmp_path / "run")) >= max(before)
    assert_goes_on(start, tmp_path, uninterrupted)


@BOTH
def test_while_data_are_read_nothing_is_touched(
    number: int,
    begin: Any,
    start: Start,
    tmp_path: Path,
    uninterrupted: Callable[..., dict[str, Any]],
) -> None:
    running, run = begin(READING, 1, FOR_EVER), tmp_path / "run"
    running.kill(number)
    # SIGTERM is not ours yet; shells call either 143.
    ended = 130 if number == signal.SIGINT else -signal.SIGTERM
    assert running.wait() == ended
    assert "Traceback" not in running.said()
    assert not run.exists()
    killed = begin(WRITING, 4, FOR_EVER)
    killed.kill()
    killed.wait()
    again = begin(READING, 1, FOR_EVER)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again.kill(number)
    assert again.wait() == ended
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert_goes_on(start, tmp_path, uninterrupted)
