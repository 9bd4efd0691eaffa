"""Weights that are numbers and give none: no answer is made of NaN, whatever is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pretune
from pretune.bundle.bundle import Bundle, load
from pretune.decoding.decoding import Decoding
from pretune.errors import NotFiniteError
from pretune.export.onnx_files import export_onnx
from pretune.export.quality_gate import GateLimits, quantize
from pretune.inference.embed import Embedder
from pretune.inference.generate import TextGenerator
from pretune.inference.predict import Predictor
from pretune.models import kernels
from tests.tasks.every_task import CASES


def broken(bundle: Bundle) -> Bundle:
    """Make its products overflow."""
    with torch.no_grad():
        for name, parameter in bundle.backbone.named_parameters():
            if "layers" in name and parameter.dim() == 2:
                parameter.mul_(1e37)
    return bundle


@pytest.mark.parametrize("name", ["classify", "choose", "regress", "tag", "tag_crf", "answer"])
def test_predict_and_quantize(
    name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 1)
    bundle, records = CASES[name].bundle(tiny_folder, tmp_path), CASES[name].records(6)
    Predictor(bundle, device="cpu").predict(records)
    pretune.evaluate(bundle, records)
    with pytest.raises(NotFiniteError, match="the model computes numbers that are not finite"):
        Predictor(broken(bundle), device="cpu").predict(records)
    with pytest.raises(NotFiniteError):
        quantize(bundle, records, GateLimits(100, 0))
    with pytest.raises(NotFiniteError):
        pretune.evaluate(bundle, records)


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"temperature": 1.0}, {"beams": 2}])
def test_generate(how: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
    bundle = broken(CASES["causal_lm"].bundle(tiny_folder, tmp_path))
    with pytest.raises(NotFiniteError):
        TextGenerator.of(bundle, device="cpu").generate(["the"], Decoding(max_new_tokens=2, **how))


def test_embed(tiny_folder: Path) -> None:
    with pytest.raises(NotFiniteError):
        Embedder(broken(load(tiny_folder)), device="cpu").embed(["the film"])


def test_export(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = broken(CASES["classify"].bundle(tiny_folder, tmp_path))
    with pytest.raises(NotFiniteError):
        export_onnx(bundle, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
