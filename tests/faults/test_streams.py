"""Standard streams without a reader or a disk: no training is lost for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.runs import Running, assert_sound

Start = Callable[..., Running]
RecipeFile = Callable[..., Path]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def assert_finished(run: Path) -> None:
    assert_sound(run)
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["steps"] == 24
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 25))


def test_a_reader_that_leaves(
    start: Start, recipe_file: RecipeFile, tmp_path: Path, pipe: Path
) -> None:
    """`pretune train ... 2>&1 | head -1`."""
    run = tmp_path / "run"
    streams = {"1": str(pipe), "2": str(pipe)}
    running = start("train", recipe_file(run), streams=streams)
    with pipe.open("rb", buffering=0) as file:
        assert file.read(1)
    assert running.wait() == 0
    assert_finished(run)


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ({"1": "/dev/full"}, 1),
        pytest.param({"2": "/dev/full"}, 0, marks=pytest.mark.slow),
        pytest.param({"1": "/dev/full", "2": "/dev/full"}, 1, marks=pytest.mark.slow),
        pytest.param({"1": None, "2": None}, 0, marks=pytest.mark.slow),
    ],
    ids=["result-full", "notes-full", "both-full", "both-closed"],
)
def test_nowhere_to_write(
    streams: dict[str, Any], code: int, start: Start, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    running = start("train", recipe_file(run), streams=streams)
    assert running.wait() == code
    assert_finished(run)
    said = running.said()
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if streams == {"1": "/dev/full"}:
        assert "error: standard output: cannot be written (No space left on device)" in said
