from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import pretune
from pretune.bundle.bundle import load
from pretune.bundle.convert import convert
from pretune.checkpoints.source import find_source
from pretune.cli.app import app
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError


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


def test_gives_the_same_model_in_the_format_before_torch_1_6(
    tiny_folder: Path, pickled: Callable[[Any], Path]
) -> None:
    expected = load(tiny_folder).model.state_dict()
    folder = pickled({})
    torch.save(
        load_file(tiny_folder / "model.safetensors"),
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    found = load(folder, allow_pickle=True).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


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


def test_one_number_cannot_pose_as_a_matrix(
    tiny_folder: Path, pickled: Callable[[Any], Path]
) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    tensors[name] = torch.zeros(1, 1).expand(*tensors[name].shape)
    with pytest.raises(CheckpointError, match=f"'{name}' is not a plain tensor"):
        load(pickled(tensors), allow_pickle=True)


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda t: t.to("meta")])
def test_other_kinds_of_tensors_are_refused(
    tiny_folder: Path, pickled: Callable[[Any], Path], make: Any
) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors["pooler.dense.weight"] = make(tensors["pooler.dense.weight"])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load(pickled(tensors), allow_pickle=True)


def test_shared_and_turned_tensors_become_their_own(
    tiny_folder: Path, pickled: Callable[[Any], Path]
) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    name, other = (f"encoder.layer.{i}.output.LayerNorm.weight" for i in (0, 1))
    tensors[other] = tensors[name]
    turned = "pooler.dense.weight"
    tensors[turned] = torch.nn.Parameter(tensors[turned].t().contiguous().t())
    backbone = load(pickled(tensors), allow_pickle=True).backbone
    state = backbone.state_dict(keep_vars=True)
    assert torch.equal(state["pooler.weight"], tensors[turned])
    first, second = (state[f"layers.{i}.feed_forward_norm.weight"] for i in (0, 1))
    with torch.no_grad():
        first.zero_()
    assert torch.equal(second, tensors[other])
    assert second.is_leaf


@pytest.fixture
def pickled_classifier(tiny_folder: Path, pickled: Callable[[Any], Path]) -> Path:
    """A classifier of two labels whose weights are a pickle."""
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(tiny_folder, num_labels=2)
    folder = pickled(model.state_dict())
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(folder)
    return folder


COMMANDS = (
    ["predict", "MODEL", "good film"],
    ["evaluate", "MODEL", "DATA"],
    ["inspect", "MODEL", "--attention", "good film", "-o", "PICTURE"],
    ["push", "MODEL", "me/films", "--dry-run", "STAGED"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_take_a_persons_word(
    pickled_classifier: Path, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "d.tsv").write_text("text\tlabel\ngood\tLABEL_1\nbad\tLABEL_0\n")
    places = {
        "MODEL": str(pickled_classifier),
        "DATA": str(tmp_path / "d.tsv"),
        "PICTURE": str(tmp_path / "p.png"),
        "STAGED": str(tmp_path / "staged"),
    }
    words = [places.get(word, word) for word in command]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "--allow-pickle" in refused.output
    allowed = CliRunner().invoke(app, [*words, "--allow-pickle"])
    assert allowed.exit_code == 0, allowed.output
    if command[0] == "push":
        assert (tmp_path / "staged/model.safetensors").is_file()
        assert not list((tmp_path / "staged").glob("*.bin"))


def test_a_recipe_takes_a_persons_word(pickled_classifier: Path, tmp_path: Path) -> None:
    rows = [f"{word} film\t{label}" for word, label in (("good", 1), ("bad", 0))] * 8
    (tmp_path / "d.tsv").write_text("\n".join(["text\tlabel", *rows]))
    recipe = {
        "task": {"name": "classify", "max_length": 16},
        "model": {"from": str(pickled_classifier)},
        "data": {"train": str(tmp_path / "d.tsv"), "validation": None},
        "train": {"max_steps": 1, "device": "cpu"},
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(CheckpointError, match=r"(?s)model\.allow_pickle=true"):
        pretune.train(recipe, quiet=True)
    assert not (tmp_path / "run").exists()
    run = pretune.train(recipe, {"model.allow_pickle": True}, quiet=True)
    assert load(run.folder).report.missing == ()


def test_the_hub_is_asked_for_a_pickle_only_then(
    pickled_classifier: Path, monkeypatch: Any
) -> None:
    asked: list[list[str]] = []

    def snapshot_download(repo: str, *, revision: Any, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(pickled_classifier)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_source("me/old") == pickled_classifier
    assert len(asked) == 1
    find_source("me/old", allow_pickle=True)
    fetched = [any(fnmatch("pytorch_model.bin", p) for p in patterns) for patterns in asked]
    assert fetched == [False, False, True]


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
