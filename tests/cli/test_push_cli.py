"""`pretune push` as a person uses it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.several import several


def push(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pretune", "push", *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        # No token and no Hub: what is not refused before is refused there.
        env={**os.environ, "COLUMNS": "100", "HF_HOME": str(cwd), "HF_TOKEN": "", **environment},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a finished run in it."""
    import pretune

    folder = tmp_path_factory.mktemp("place")
    rows = [f"{w} film\t{w}" for _ in range(20) for w in ("good", "bad")]
    (folder / "films.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    options = {
        "model.from": str(tiny_folder),
        "task.max_length": 16,
        "train.epochs": 1,
        "output": str(folder / "runs/films"),
    }
    pretune.train(str(folder / "films.tsv"), options, quiet=True)
    return folder


@pytest.mark.slow
def test_help_has_an_example(tmp_path: Path) -> None:
    done = push("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "pretune push" in done.stdout.split("Examples", 1)[1]


def test_a_dry_run_needs_neither_network_nor_token(place: Path) -> None:
    done = push("runs/films", "me/films", "--dry-run", "dry", "--license", "mit", cwd=place)
    assert done.returncode == 0, done.stderr
    sizes = {p.name: p.stat().st_size for p in (place / "dry").iterdir()}
    for name, size in sizes.items():
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{name} "))
        assert line.endswith(f" {size:,} bytes")
    assert "README.md" in sizes
    assert "nothing was sent" in done.stdout
    assert "license: mit" in (place / "dry/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_dry_run_as_json(place: Path) -> None:
    done = push("runs/films", "me/films", "--dry-run", "json", "--json", cwd=place)
    found = json.loads(done.stdout)
    assert {file["name"] for file in found["files"]} == {p.name for p in (place / "json").iterdir()}


def test_mistakes(place: Path) -> None:
    lines = {
        "runs/films me/films": "hf auth login",
        "runs/films films": "owner/name",
        "runs/no me/films --dry-run x": "no such folder",
        "runs me/films --dry-run x": "neither a run nor a checkpoint",
        "runs/films me/films --dry-run runs": "exists already",
    }
    settings = {"HF_HOME": str(place), "HF_TOKEN": ""}
    ended = several(*(["push", *line.split()] for line in lines), cwd=place, **settings)
    for done, told in zip(ended, lines.values(), strict=True):
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert done.stdout == ""
    assert not (place / "x").exists()


@pytest.mark.slow
def test_the_hub_out_of_reach(place: Path) -> None:
    settings = {"HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"}
    done = push("runs/films", "me/films", cwd=place, **settings)
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "Traceback" not in done.stderr
