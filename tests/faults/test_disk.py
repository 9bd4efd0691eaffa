"""A full disk: a sentence, everything earlier intact, and an exact resume once there is room."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pretune.bundle.bundle import Bundle, load
from pretune.errors import RunError
from pretune.recipe.recipe import Recipe
from pretune.tasks.builtin import task_class
from pretune.training.checkpoint import TENSORS, RunCheckpoints
from pretune.training.data import read_data
from pretune.training.logging import JsonLines, Reporter
from pretune.training.state import generators
from tests.faults.runs import Running, assert_sound, neighbour, steps_of, wait_until

_resume = neighbour("outcomes")
outcome, assert_alike = _resume.outcome, _resume.assert_alike

Start = Callable[..., Running]
RecipeFile = Callable[..., Path]
MODES = pytest.mark.parametrize(
    "background",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["foreground", "background"],
)
#: Nothing but checkpoints is written before the end.
SILENT = {"train__log_every": 1000, "train__eval_every": 1000}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip(f"a disk cannot be mounted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, free: int = 0) -> Path:
    """A file that leaves so many bytes of a disk free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            file.truncate(max(file.tell() - free, 0))
    return ballast


@pytest.fixture
def bundle(toy_recipe: Callable[..., Recipe]) -> Bundle:
    """With all the files that a run's checkpoints have."""
    recipe = toy_recipe()
    task = task_class(recipe.task.name)(recipe.task)
    task.fit(read_data(recipe)[0])
    return load(recipe.model.source, task=task)


@MODES
def test_whichever_file_it_is_that_does_not_fit(
    background: bool, disk: Path, bundle: Bundle
) -> None:
    """With more and more room, until it fits."""
    store = RunCheckpoints(disk, bundle, background=background)
    store.save(1, generators(), best=True)
    store.flush()
    files = [path.name for path in (disk / "last").iterdir()]
    size = sum(path.stat().st_size for path in (disk / "last").iterdir())
    said: list[str] = []
    for free in range(0, 2 * size, 4096):
        ballast = fill(disk, free)
        try:
            store.save(2, generators(), best=True)
            store.flush()
            break
        except RunError as error:
            said.append(str(error))
            assert [path.name for path in (disk / "checkpoints").iterdir()] == ["step-000001"]
            assert_sound(disk)
        finally:
            ballast.unlink()
    else:
        pytest.fail("it never did")
    assert steps_of(disk) == [2]
    assert len(files) >= 7
    assert len(said) > len(files)
    assert set(said) == {
        f"{disk}/checkpoints/step-000002: the checkpoint cannot be written (No space left on "
        f"device); {disk}/checkpoints/step-000001 is intact\n"
        f"  Make room, then go on: pretune train --resume {disk}"
    }


@pytest.mark.slow
@MODES
def test_a_run_that_fills_its_disk_goes_on_when_there_is_room(
    background: bool,
    disk: Path,
    start: Start,
    recipe_file: RecipeFile,
    uninterrupted: Callable[..., Any],
) -> None:
    run = disk / "run"
    changes = {"train__background_save": background, "train__max_steps": 40, **SILENT}
    running = start("train", recipe_file(run, **changes))
    assert wait_until(lambda: len(steps_of(run)) >= 2, running), running.said()
    ballast = fill(disk)
    assert running.wait() == 2
    said = running.said()
    assert "Traceback" not in said
    assert "the checkpoint cannot be written (No space left on device)" in said
    assert f"pretune train --resume {run}" in said
    assert_sound(run)
    assert [path.name for path in run.rglob(".*.tmp")] == []
    left = steps_of(run)
    assert f"{run}/checkpoints/step-{left[-1]:06d} is intact" in said
    ballast.unlink()
    last = start("train", "--resume", run)
    assert last.wait() == 0, last.said()
    assert f"resumed from {run}/checkpoints/step-{left[-1]:06d}" in last.said()
    assert_alike(outcome(run), uninterrupted(**changes))


@pytest.mark.parametrize(
    ("name", "background"),
    [
        pytest.param("model.safetensors", False, marks=pytest.mark.slow),
        (TENSORS, True),
        pytest.param("model.safetensors", True, marks=pytest.mark.slow),
        pytest.param(TENSORS, False, marks=pytest.mark.slow),
    ],
)
def test_a_file_that_may_not_be_so_large(
    name: str,
    background: bool,
    start: Start,
    recipe_file: RecipeFile,
    tmp_path: Path,
    uninterrupted: Callable[..., Any],
) -> None:
    """RLIMIT_FSIZE, as batch systems set it; needs no disk of its own."""
    run = tmp_path / "run"
    changes = {"train__background_save": background, "train__max_steps": 40, **SILENT}
    running = start("train", recipe_file(run, **changes))
    assert wait_until(lambda: len(steps_of(run)) >= 2, running), running.said()
    running.kill(signal.SIGTERM)
    assert running.wait() == 143
    before = steps_of(run)
    limit = (run / "last" / name).stat().st_size - 1
    if name == TENSORS:
        assert (run / "last" / "model.safetensors").stat().st_size < limit
    limited = start("train", "--resume", run, largest=limit)
    assert limited.wait() == 2
    assert "Traceback" not in limited.said()
    assert f"step-{before[-1] + 1:06d}: the checkpoint cannot be written (File too large)" in (
        limited.said()
    )
    assert steps_of(run) == before
    assert [path.name for path in run.rglob(".*.tmp")] == []
    assert_sound(run)
    last = start("train", "--resume", run)
    assert last.wait() == 0, last.said()
    assert_alike(outcome(run), uninterrupted(**changes))


def test_the_ballast_leaves_what_it_says(disk: Path) -> None:
    fill(disk, 40_960)
    assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize == 40_960


class TestLogs:
    """What a full disk does to them: said once; no line is lost, and no training."""

    def test_lines_that_do_not_fit_come_later(self, disk: Path) -> None:
        reporter = Reporter(console=Console(file=io.StringIO(), width=300))
        path = disk / "metrics.jsonl"
        with reporter:
            reporter.add(JsonLines(path))
            reporter.evaluation(1, 0.1, {"loss": 1.0}, 0.0, "")
            ballast = fill(disk)
            for step in range(2, 200):
                reporter.evaluation(step, 0.1, {"loss": 1.0}, 0.0, "")
            assert len(path.read_text().splitlines()) < 199
            ballast.unlink()
            reporter.evaluation(200, 0.1, {"loss": 1.0}, 0.0, "")
            assert [json.loads(line)["step"] for line in path.open()] == list(range(1, 201))
        said = reporter.console.file.getvalue()
        warning = f"{path}: cannot be written (No space left on device); training continues"
        assert said.count(warning) == 1

    def test_or_never_if_there_is_no_room_to_the_end(self, disk: Path) -> None:
        path = disk / "metrics.jsonl"
        with Reporter(quiet=True) as reporter:
            reporter.add(JsonLines(path))
            fill(disk)
            for step in range(1, 200):
                reporter.evaluation(step, 0.1, {"loss": 1.0}, 0.0, "")
        assert 0 <= len(path.read_text().splitlines()) < 199

    def test_going_back_forgets_what_is_not_written_yet(self, disk: Path) -> None:
        path = disk / "metrics.jsonl"
        lines = JsonLines(path)
        ballast = fill(disk)
        for step in range(1, 200):
            with suppress(OSError):
                lines.write(step, 0.1, {"loss": 1.0})
        ballast.unlink()
        lines.rewind(150)
        lines.write(151, 0.1, {"loss": 2.0})
        lines.close()
        found = [json.loads(line) for line in path.open()]
        assert [entry["step"] for entry in found] == list(range(1, 152))
        assert found[-1]["loss"] == 2.0

    def test_a_run_is_refused_with_a_sentence_where_nothing_fits(
        self, disk: Path, start: Start, recipe_file: RecipeFile
    ) -> None:
        run = disk / "run"
        fill(disk)
        running = start("train", recipe_file(run, **SILENT))
        assert running.wait() == 2, running.said()
        assert "cannot be written (No space left on device)" in running.said()
        assert "Traceback" not in running.said()

    @pytest.mark.slow
    def test_resuming_on_a_full_disk_says_so_and_costs_nothing(
        self,
        disk: Path,
        start: Start,
        recipe_file: RecipeFile,
        uninterrupted: Callable[..., Any],
    ) -> None:
        run = disk / "run"
        changes: dict[str, Any] = {}
        running = start("train", recipe_file(run, **changes))
        assert wait_until(lambda: len(steps_of(run)) >= 2, running), running.said()
        running.kill()
        running.wait()
        ballast = fill(disk)
        before = steps_of(run)
        full = start("train", "--resume", run)
        assert full.wait() == 2, full.said()
        assert "cannot be written (No space left on device)" in full.said()
        assert f"pretune train --resume {run}" in full.said()
        assert "Traceback" not in full.said()
        assert steps_of(run) == before
        ballast.unlink()
        last = start("train", "--resume", run)
        assert last.wait() == 0, last.said()
        assert_alike(outcome(run), uninterrupted(**changes))
