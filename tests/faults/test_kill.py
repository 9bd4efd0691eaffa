"""Killed at any moment, a run goes on bit for bit from its last checkpoint; nothing is torn."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import (
    PATIENCE,
    PAUSE,
    Running,
    assert_sound,
    neighbour,
    steps_of,
    wait_until,
)

#: How often a run is killed in the long tests; 30 times and more by PRETUNE_KILLS=30.
KILLS = int(os.environ.get("PRETUNE_KILLS", "10"))

_resume = neighbour("outcomes")
outcome, assert_alike = _resume.outcome, _resume.assert_alike

Start = Callable[..., Running]
RecipeFile = Callable[..., Path]


def being_written(run: Path, process: int) -> set[str]:
    """The checkpoints that a process has begun and not finished."""
    try:
        names = os.listdir(run / "checkpoints")
    except FileNotFoundError:
        return set()
    return {name for name in names if name.endswith(f".{process}.tmp") and "step-" in name}


def logged(run: Path) -> int:
    """The last update in the log."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


@dataclass
class Killer:
    """Kills a run again and again until it has had enough, and then lets it finish.

    Attributes:
        slack: how many updates may be done at most and not be in a whole checkpoint.
        kills: how many there were.
        inside: how many of them while a checkpoint was being written.
    """

    start: Start
    run: Path
    chance: random.Random
    slack: int
    kills: int = 0
    inside: int = 0
    begun: list[Running] = field(default_factory=list)

    def once(self, *argv: str | Path, inside: bool) -> bool:
        """Start, kill, look; False if the process ended by itself before."""
        before = max(steps_of(self.run), default=0)
        running = self.start(*argv)
        hit = self._inside(running) if inside else self._anywhere(running, before)
        if not hit:
            return False
        running.kill()
        code = running.wait()
        if code != -signal.SIGKILL:
            return False
        self.kills += 1
        self.inside += bool(being_written(self.run, running.pid))
        assert_sound(self.run)
        found = max(steps_of(self.run), default=0)
        assert found >= before, "lost a checkpoint that was whole"
        assert logged(self.run) - found <= self.slack, "lost more than the last checkpoint should"
        return True

    def _inside(self, running: Running) -> bool:
        """In the middle of its first, second or third checkpoint."""
        seen: set[str] = set()
        wanted = self.chance.randint(1, 3)

        def begun() -> bool:
            now = being_written(self.run, running.pid)
            seen.update(now)
            return len(seen) >= wanted and bool(now)

        return wait_until(begun, running)

    def _anywhere(self, running: Running, before: int) -> bool:
        """At an update from the next one on, a little later or at once; or already on the way."""
        if self.chance.random() < 0.2:
            time.sleep(self.chance.uniform(0.0, 0.5))
            return running.lives
        update = before + self.chance.randint(1, 4)
        if not wait_until(lambda: max(_names(self.run), default=0) >= update, running):
            return False
        time.sleep(self.chance.uniform(0.0, 0.05))
        return True


def _names(run: Path) -> list[int]:
    try:
        names = os.listdir(run / "checkpoints")
    except FileNotFoundError:
        return []
    return [int(name.split("-")[1].partition(".")[0]) for name in names if name[0] != "."]


def torture(
    start: Start,
    recipe_file: RecipeFile,
    tmp_path: Path,
    uninterrupted: Callable[..., Any],
    *,
    kills: int,
    inside: int,
    seed: int,
    slack: int = 1,
    **changes: Any,
) -> Killer:
    """A run killed so often, and so often inside a write, and then finished; beside one that
    never was: they must come to the same."""
    expected = uninterrupted(**changes)
    run = tmp_path / "killed"
    recipe = recipe_file(run, **changes)
    killer = Killer(start, run, random.Random(seed), slack)
    tries = 0
    while killer.kills < kills or killer.inside < inside:
        tries += 1
        assert tries <= 3 * kills, f"{killer.kills} kills, {killer.inside} inside"
        argv = ("--resume", run) if (run / "recipe.yaml").exists() else (recipe,)
        missing = killer.inside < inside and killer.chance.random() < 0.6
        done = not killer.once("train", *argv, "-q", inside=missing or killer.kills >= kills)
        assert not done or not (run / "result.json").exists(), "over before it was killed enough"
    last = start("train", "--resume", run, "-q")
    assert last.wait() == 0, last.said()
    assert_alike(outcome(run), expected)
    left = [path.name for path in run.rglob(".*.tmp")]
    assert left == []
    return killer


@pytest.mark.parametrize("background", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_few_times(
    background: bool,
    start: Start,
    recipe_file: RecipeFile,
    tmp_path: Path,
    uninterrupted: Callable[..., Any],
) -> None:
    killer = torture(
        start,
        recipe_file,
        tmp_path,
        uninterrupted,
        kills=5,
        inside=2,
        seed=0,
        slack=2 if background else 1,
        train__max_steps=40,
        train__background_save=background,
    )
    assert killer.kills >= 5
    assert killer.inside >= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (1, {}),
        (2, {"train__background_save": True}),
        (3, {"train__save_every": 2, "train__ema": 0.9, "train__accumulate": 2}),
    ],
)
def test_many_times(
    seed: int,
    changes: dict[str, Any],
    start: Start,
    recipe_file: RecipeFile,
    tmp_path: Path,
    uninterrupted: Callable[..., Any],
) -> None:
    every = changes.get("train__save_every", 1)
    slack = 2 * every if "train__background_save" in changes else every
    killer = torture(
        start,
        recipe_file,
        tmp_path,
        uninterrupted,
        kills=KILLS,
        inside=KILLS // 3,
        seed=seed,
        slack=slack,
        train__max_steps=5 * KILLS * every,
        **changes,
    )
    assert killer.kills >= KILLS
    assert killer.inside >= KILLS // 4


@pytest.mark.slow
def test_an_interpreter_of_its_own(
    recipe_file: RecipeFile, tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    """As a person types it: no forking."""
    expected, run = uninterrupted(), tmp_path / "killed"
    for argv in ([str(recipe_file(run))], ["--resume", str(run)]):
        before = max(_names(run), default=0)
        process = subprocess.Popen([sys.executable, "-m", "pretune", "train", *argv, "-q"])
        deadline = time.monotonic() + PATIENCE
        while max(_names(run), default=0) < before + 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(PAUSE)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert_sound(run)
    done = subprocess.run(
        [sys.executable, "-m", "pretune", "train", "--resume", str(run)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"resumed from {run}/checkpoints/step-" in done.stderr
    assert_alike(outcome(run), expected)
