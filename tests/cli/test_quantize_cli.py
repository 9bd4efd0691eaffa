"""`pretune quantize` as a person uses it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.bundle.bundle import save
from pretune.cli.app import app
from pretune.models import kernels
from tests.tasks.every_task import CASES, write


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kernels, "SMALLEST", 512)
    folder = tmp_path / "run"
    folder.mkdir()
    save(CASES["classify"].bundle(tiny_folder, tmp_path), folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(CASES["classify"].rows(12), tmp_path / "data.jsonl")


def pretune(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "220"})


def test_a_folder_that_answers_in_8_bits(run: Path, data: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    loose = ("--max-loss", 100, "--min-agreement", 0)
    done = pretune("quantize", run, "--data", data, *loose, "-o", small)
    assert done.exit_code == 0, done.output
    for part in (
        "float32",
        "all but 2 of 9 matrices",
        "all matrices, tables",
        "taken",
        "12 examples",
    ):
        assert part in done.output
    # As many places as `pretune compare` has: the smallest p is no 0.
    assert re.search(r"interval of the change .*, p \d\.\d{4}\n", done.output)
    assert (small / "model.int8.safetensors").is_file()
    answered = pretune("predict", small, "the good film", "--json")
    assert answered.exit_code == 0, answered.output
    measured = pretune("evaluate", small, data, "--json")
    assert measured.exit_code == 0, measured.output
    record = json.loads((small / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    accuracy = json.loads(measured.stdout)["metrics"]["accuracy"]
    assert accuracy == pytest.approx(record["int8"])
    # A flipped byte is found, whatever it stands for.
    path = small / "model.int8.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    damaged = pretune("predict", small, "x")
    assert damaged.exit_code == 2
    assert "model.int8.safetensors" in damaged.output
    assert "--overwrite" in pretune("quantize", run, "--data", data, "-o", small).output


@pytest.mark.parametrize(
    ("name", "ask"),
    [("classify", "predict {} TEXT"), ("chat", "chat {}"), (None, "embed {} FILE")],
)
def test_the_way_to_ask_it_is_that_of_the_task(
    name: str | None, ask: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 512)
    run, small, data = tiny_folder, tmp_path / "small", tmp_path / "texts.txt"
    data.write_text("the good film\n\nbad\n", encoding="utf-8")
    if name is not None:
        run = tmp_path / "run"
        run.mkdir()
        save(CASES[name].bundle(tiny_folder, tmp_path), run)
        data = write(CASES[name].rows(6), tmp_path / "data.jsonl")
    loose = ("--max-loss", 100, "--min-agreement", 0)
    done = pretune("quantize", run, "--data", data, *loose, "-o", small)
    assert done.exit_code == 0, done.output
    shown = "".join(done.output.split())
    assert shown.endswith("".join(f"itanswersin8bits:pretune{ask}".format(small).split()))


def test_nothing_passes_nothing_is_written(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretune.export.quality_gate.points_lost", lambda *given: 9.0)
    refused = pretune("quantize", run, "--data", data, "-o", tmp_path / "small")
    assert refused.exit_code == 2
    assert "accuracy 9.00 worse, at most 0.5" in refused.output
    assert "--force" in refused.output
    assert not (tmp_path / "small").exists()
    forced = pretune("quantize", run, "--data", data, "-o", tmp_path / "small", "--force")
    assert forced.exit_code == 0, forced.output
    assert "forced" in forced.output
    assert "written with --force" in pretune("predict", tmp_path / "small", "x").output


def test_8_bits_are_published_but_not_trained(run: Path, data: Path, tmp_path: Path) -> None:
    loose = ("--max-loss", 100, "--min-agreement", 0)
    pretune("quantize", run, "--data", data, *loose, "-o", tmp_path / "small")
    where = (f"model.from={tmp_path / 'small'}", f"output={tmp_path / 'new'}", "task.max_length=32")
    done = pretune("train", data, *where, "train.device=cpu")
    assert done.exit_code == 2
    assert "in 8 bits, which are not trained" in done.output
    pushed = pretune("push", tmp_path / "small", "me/small", "--dry-run", tmp_path / "staged")
    assert pushed.exit_code == 0, pushed.output
    assert "## 8 bits" in (tmp_path / "staged" / "README.md").read_text(encoding="utf-8")
