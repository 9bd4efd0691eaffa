from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pretune.data import PackedBatch
from pretune.errors import CheckpointError
from pretune.tasks.bundle import load
from pretune.tasks.convert import convert


@pytest.fixture
def pickled(tiny_folder: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """A copy of the tiny model whose weights are a pickle of something."""

    def make(content: Any) -> Path:
        folder = tmp_path / "pickled"
        folder.mkdir()
        for name in ("config.json", "vocab.txt"):
            shutil.copy(tiny_folder / name, folder / name)
        torch.save(content, folder / "pytorch_model.bin")
        return folder

    return make


def test_is_refused_with_the_way_out(tiny_folder: Path, pickled: Callable[[Any], Path]) -> None:
    folder = pickled(load_file(tiny_folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match="convert SOURCE FOLDER --allow-pickle"):
        load(folder)


def test_gives_the_same_model_when_allowed(
    tiny_folder: Path, pickled: Callable[[Any], Path]
) -> None:
    folder = pickled(load_file(tiny_folder / "model.safetensors"))
    expected = load(tiny_folder).model.state_dict()
    found = load(folder, allow_pickle=True).model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


class Evil:
    """Makes a file when unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("content", [{"a": Evil()}, Evil(), [1, 2], {"a": 3}])
def test_never_runs_code(
    pickled: Callable[[Any], Path], content: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    folder = pickled(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load(folder, allow_pickle=True)
    assert not (tmp_path / "evil").exists()


def test_converted_it_opens_everywhere(
    tiny_folder: Path, pickled: Callable[[Any], Path], tmp_path: Path
) -> None:
    folder = pickled(load_file(tiny_folder / "model.safetensors"))
    report = convert(folder, tmp_path / "new", allow_pickle=True)
    assert report.missing == ()
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "new").eval()
    ours = load(tmp_path / "new").model.eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([[2, 5, 3]])).last_hidden_state[0]
        assert (ours(PackedBatch.of([[2, 5, 3]])).last_hidden_state - expected).abs().max() < 1e-5
    with pytest.raises(CheckpointError, match="exists already"):
        convert(folder, tmp_path / "new", allow_pickle=True)


def test_a_head_without_a_task_goes_along(tiny_folder: Path, tmp_path: Path) -> None:
    config = transformers.BertConfig.from_pretrained(tiny_folder)
    theirs = transformers.BertForQuestionAnswering(config)
    theirs.save_pretrained(tmp_path / "qa")
    shutil.copy(tiny_folder / "vocab.txt", tmp_path / "qa" / "vocab.txt")
    assert convert(tmp_path / "qa", tmp_path / "new").unexpected == ()
    again = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "new")
    assert torch.equal(again.qa_outputs.weight, theirs.qa_outputs.weight)


def test_random_weights_by_the_name_of_a_size() -> None:
    bundle = load("bert-tiny")
    assert sum(p.numel() for p in bundle.model.parameters()) == 4_385_920
    assert float(bundle.backbone.embeddings.tokens.weight.std()) == pytest.approx(0.02, rel=0.01)
    with pytest.raises(CheckpointError, match=r"model\.tokenizer=FOLDER"):
        load("gpt2-small")
