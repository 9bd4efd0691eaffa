from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pretune.bundle.bundle import load
from pretune.checkpoints.source import find_source
from pretune.serving.kept_files import KeptFiles
from pretune.serving.watch import model_folder


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    return folder


def test_what_was_replaced_can_be_read_again(model: Path, tmp_path: Path) -> None:
    before = (model / "model.safetensors").read_bytes()
    kept = KeptFiles(str(model))
    assert kept.current
    assert kept.intact
    shutil.rmtree(model)
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert not kept.current
    assert kept.intact
    shown = tmp_path / "shown"
    shown.mkdir()
    kept.show(shown)
    assert (shown / "model.safetensors").read_bytes() == before
    assert load(shown, mmap=False).model is not None
    kept.close()
    assert not kept.intact


def test_what_was_written_into_is_no_longer_what_it_was(model: Path) -> None:
    kept = KeptFiles(str(model))
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert not kept.intact
    kept.close()


def test_a_model_of_others_is_not_held(tmp_path: Path) -> None:
    for source in ("owner/name", "minilm", str(tmp_path)):
        kept = KeptFiles(source)
        assert not kept.intact
        assert kept.current


def test_files_are_looked_for_where_models_are_read(tiny_folder: Path, tmp_path: Path) -> None:
    # A model, a run with its best, a run that has only its last, and a sentence encoder.
    run, other, encoder = (tmp_path / name for name in ("run", "other", "encoder"))
    shutil.copytree(tiny_folder, run / "last")
    shutil.copytree(tiny_folder, other / "step-1")
    (run / "best").symlink_to(other / "step-1")
    (other / "last").symlink_to(other / "step-1")
    shutil.copytree(tiny_folder, encoder / "0_Transformer")
    modules = '[{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}]'
    (encoder / "modules.json").write_text(modules)
    for source in (tiny_folder, run, other):
        assert str(model_folder(str(source))) == os.path.realpath(find_source(source))
    # Of an encoder all is held, not only its Transformer.
    assert find_source(encoder).parent == encoder == model_folder(str(encoder))
    assert model_folder(str(tmp_path)) is None
