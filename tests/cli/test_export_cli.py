"""Folders and files of other engines in the place of a model, as a person meets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.bundle.bundle import Bundle
from pretune.cli.app import app
from pretune.export.ctranslate2_folder import export_ctranslate2
from pretune.export.onnx_files import export_onnx
from tests.export.test_gguf import gpt2  # noqa: F401 - a fixture
from tests.tasks.every_task import CASES, write


@pytest.fixture(scope="module")
def exported(gpt2: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(gpt2, folder / "onnx")
    export_ctranslate2(gpt2, folder / "ct2")
    return {"onnx": folder / "onnx", "ctranslate2": folder / "ct2"}


def refused(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (2, True)
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", ["predict", "evaluate", "inspect", "generate"])
@pytest.mark.parametrize(
    ("kind", "what", "use"),
    [
        ("onnx", "an ONNX model", "onnxruntime runs it"),
        ("ctranslate2", "a model of CTranslate2", "CTranslate2 runs it"),
    ],
)
def test_is_named_with_what_runs_it(
    command: str, kind: str, what: str, use: str, exported: dict[str, Path], tmp_path: Path
) -> None:
    data = write(CASES["causal_lm"].rows(3), tmp_path / "data.jsonl")
    more = {"predict": ["the"], "evaluate": [data], "generate": ["--prompt", "the"]}
    said = refused(command, exported[kind], *more.get(command, []))
    assert f"{exported[kind]}: no model" in said
    assert f"that pretune reads, but only {what}" in said
    assert use in said


def test_damage_is_named(exported: dict[str, Path]) -> None:
    for kind, file in (("onnx", "onnx/model.onnx"), ("ctranslate2", "model.bin")):
        path = exported[kind] / file
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        said = refused("predict", exported[kind], "the")
        path.write_bytes(whole)
        assert f"{path}: damaged (its SHA-256 is not that of what was written)" in said
        assert "Export the model again." in said
