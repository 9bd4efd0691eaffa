"""Exports of OPUS-MT, whose programs cut texts by SentencePiece."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretune.bundle.bundle import load
from pretune.export.ctranslate2_folder import export_ctranslate2
from pretune.export.onnx_files import export_onnx
from pretune.inference.predict import Predictor
from tests.tasks.opus import SOURCES, write_model, write_tokenizer

EXPORTS: dict[str, Any] = {"onnx": export_onnx, "ctranslate2": export_ctranslate2}


@pytest.mark.slow
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("to", EXPORTS)
def test_the_program_of_an_opus_mt_writes_what_predict_writes(
    to: str, separate: bool, tmp_path: Path
) -> None:
    (model := tmp_path / "model").mkdir()
    write_tokenizer(model, separate=separate)
    # A search that every engine has.
    plain = {"num_beams": 1, "renormalize_logits": False, "forced_eos_token_id": None}
    write_model(model, **plain)
    bundle = load(model, options={"prefix": ">>deu<< "})
    EXPORTS[to](bundle, tmp_path / "out")
    predictor = Predictor(bundle)
    (answer,) = predictor.predict(predictor.records(SOURCES[:1]))
    command = [sys.executable, "example.py", SOURCES[0]]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        command, cwd=tmp_path / "out", env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == answer.translation
