"""`pretune prune` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from typer.testing import CliRunner

from pretune.bundle.bundle import load, save
from pretune.cli.app import app
from tests.tasks.every_task import CASES, write


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path) -> Path:
    """A run folder with a classifier as its best checkpoint."""
    folder = tmp_path / "run" / "best"
    folder.mkdir(parents=True)
    save(CASES["classify"].bundle(tiny_folder, tmp_path), folder)
    (folder / "trainer.json").write_text("{}", encoding="utf-8")
    return folder.parent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(CASES["classify"].rows(12), tmp_path / "data.jsonl")


def pruned(*arguments: Any) -> Any:
    given = ["prune", *map(str, arguments), "--device", "cpu"]
    return CliRunner().invoke(app, given, env={"COLUMNS": "200"})


def test_a_smaller_checkpoint(run: Path, data: Path, tmp_path: Path) -> None:
    smaller = tmp_path / "smaller"
    more = ("--layers", "top:1", "--heads", 0.5, "--ffn", 0.25, "--data", data)
    done = pruned(run, *more, "-o", smaller)
    assert done.exit_code == 0, done.output
    for part in ("attention heads", "parameters", "accuracy", f"model.from={smaller}"):
        assert part in done.output
    # Nothing of the run's state goes along.
    assert {path.name for path in smaller.iterdir()} == {
        *("config.json", "model.safetensors", "pretune.json"),
        *("tokenizer.json", "tokenizer_config.json", "pruning.json", "manifest.json"),
    }
    layers = load(smaller).backbone.layers
    assert [layer.attention.num_heads for layer in layers] == [2]
    assert layers[0].feed_forward.up.out_features == 48
    # Again: only with --overwrite, and never in the place of something else.
    assert "--overwrite" in pruned(run, *more, "-o", smaller).output
    again = pruned(smaller, "--ffn", 0.5, "-o", smaller, "--overwrite", "--json")
    assert again.exit_code == 0, again.output
    values = json.loads(again.stdout)
    assert (values["before"]["neurons"], values["after"]["neurons"]) == (48, 24)
    assert load(smaller).backbone.config.intermediate_size == 24
    refused = pruned(smaller, "--ffn", 0.5, "-o", run, "--overwrite")
    assert refused.exit_code == 2
    assert "not the folder of one model" in refused.output
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_dry_run_writes_nothing(run: Path, data: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = pruned(run, "--ffn", 0.5, "--data", data, "--limit", 5, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "nothing was written" in done.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dry-run"], "nothing to remove"),
        (["--ffn", "0.5"], "--output FOLDER"),
        (["--ffn", "0.5", "--dry-run", "-o", "x"], "Leave out --output"),
        (["--heads", "1.0", "--dry-run"], "keeps at least one"),
        (["--ffn", "2", "--dry-run"], "a share is from 0 to 1"),
        (["--layers", "7", "--dry-run"], "has the layers 0 to 1"),
        (["--ffn", "0.5", "--dry-run", "--encoding", "gb18030"], "--encoding is about --data"),
        (["--ffn", "0.5", "--dry-run", "--limit", "3"], "--limit is about --data, and there is"),
        (["--heads", "0.01", "--dry-run"], "--heads 0.01: of 8 that is none"),
        (["--ffn", "0.5", "--dry-run", "--data", "none.tsv"], "none.tsv"),
    ],
)
def test_mistakes(run: Path, more: list[str], message: str) -> None:
    done = pruned(run, *more)
    assert done.exit_code == 2, done.output
    assert message in done.output


def test_a_full_disk_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **options: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("pretune.checkpoints.save.save_file", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = pruned(run, "--ffn", 0.5, "-o", tmp_path / "smaller")
    assert done.exit_code == 2
    assert "smaller: cannot be written (No space left on device)" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == before
