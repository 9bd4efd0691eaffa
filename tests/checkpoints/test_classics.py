"""The models before the Transformer: in a layout of our own, as safe as the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from pretune.bundle.bundle import load, outline
from pretune.bundle.convert import convert
from pretune.checkpoints.config import read_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.save import save_model
from pretune.cli.app import app
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.experiments.costs import count_flops
from pretune.models.classics.common import ClassicLM
from pretune.models.classics.nnlm import NnlmConfig
from pretune.models.classics.rnn import RnnConfig
from pretune.models.families import FAMILIES
from pretune.models.resize import resize_vocabulary
from pretune.recipe.schema import TrainSection
from pretune.tokenizers.load import load_tokenizer
from pretune.training.freeze import freeze
from pretune.training.optimizer import Optimizer
from tests.checkpoints.test_fuzz import HOSTILE, survives

SMALL: dict[str, dict[str, Any]] = {
    "nnlm": {"embedding_size": 4, "hidden_size": 6, "order": 4, "direct_connections": True},
    "rnn": {"embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "cell": "gru"},
}
BOTH = pytest.mark.parametrize("kind", SMALL)
IDS = [[2, 5, 9, 33, 11, 3], [7], [4, 4, 4]]


def made(kind: str, vocabulary: int = 40, **more: Any) -> ClassicLM:
    family = FAMILIES[kind]
    sizes = {**SMALL[kind], "vocab_size": vocabulary, **more}
    torch.manual_seed(0)
    model = family.build(family.backbone.config_class.from_dict(sizes), "causal_lm")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def saved(model: ClassicLM, folder: Path, vocabulary: Path | None = None) -> Path:
    folder.mkdir()
    save_model(model, folder, FAMILIES[model.backbone.config.model_type], "causal_lm")
    if vocabulary is not None:
        shutil.copy(vocabulary / "vocab.txt", folder)
    return folder


def opened(folder: Path, head: str = "causal_lm") -> tuple[nn.Module, Any]:
    config = read_config(folder)
    family = FAMILIES[config["model_type"]]

    sizes = family.backbone.config_class.from_dict(config)
    return load_into(lambda: family.build(sizes, head), open_weights(folder), folder, family, head)


@pytest.fixture
def folder(tmp_path: Path, tiny_vocab_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A saved model with a tokenizer."""
    count = len((tiny_vocab_folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    return saved(made(request.param, count), tmp_path / "model", tiny_vocab_folder)


FOLDERS = pytest.mark.parametrize("folder", SMALL, indirect=True)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("nnlm", {}),
        ("nnlm", {"direct_connections": False}),
        ("rnn", {}),
        ("rnn", {"cell": "lstm"}),
        ("rnn", {"cell": "rnn", "tie_word_embeddings": True}),
    ],
)
def test_loads_again_bit_by_bit(kind, more, tmp_path):
    model = made(kind, **more)
    again, report = opened(saved(model, tmp_path / "model"))
    assert (report.missing, report.unexpected) == ((), ())
    assert again.backbone.config == model.backbone.config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again(PackedBatch.of(IDS)), model(PackedBatch.of(IDS)))


def test_the_names_in_the_file_are_ours(tmp_path):
    for kind in SMALL:
        model = made(kind)
        found = load_file(saved(model, tmp_path / kind) / "model.safetensors")
        assert found.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(found[name], value)
    config = json.loads((tmp_path / "rnn" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("rnn", ["RnnForCausalLM"])


@BOTH
def test_the_backbone_alone(kind, tmp_path):
    model = made(kind)
    bare, report = opened(saved(model, tmp_path / "model"), "backbone")
    assert "bias" in report.unexpected
    batch = PackedBatch.of(IDS)
    expected = model.backbone(batch).last_hidden_state
    assert torch.equal(bare(batch).last_hidden_state, expected)
    (tmp_path / "bare").mkdir()
    save_model(bare, tmp_path / "bare", FAMILIES[kind], "backbone")
    again, report = opened(tmp_path / "bare")
    assert set(report.missing) == {"output.weight", "bias"}
    assert torch.equal(again.backbone(batch).last_hidden_state, expected)


@BOTH
def test_weights_of_another_model_are_refused(kind, tmp_path):
    folder = saved(made(kind), tmp_path / "model")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if not k.startswith("backbone.layers.0")}, path)
    with pytest.raises(CheckpointError, match=r"lack \d tensors of the"):
        opened(folder)
    save_file({**tensors, "output.weight": torch.zeros(40, 3)}, path)
    with pytest.raises(CheckpointError, match=r"'output.weight' is \[40, 3\]"):
        opened(folder)


@FOLDERS
def test_whatever_the_config_says(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    outcomes = []
    for key in config:
        for value in HOSTILE:
            path.write_text(json.dumps({**config, key: value}))
            about_model = key in ("architectures", "model_type")
            outcomes.append(survives(folder, converting=about_model))
    assert {True, False} <= set(outcomes)
    for key in ("vocab_size", "embedding_size", "hidden_size"):
        for value in (-1, 0, 10**12, float("nan"), "8", [8], True, 8.0):
            path.write_text(json.dumps({**config, key: value}))
            assert not survives(folder), (key, value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RnnConfig(cell="ltsm"), "unknown cell 'ltsm'\n  Did you mean 'lstm'"),
        (lambda: RnnConfig(cell=["lstm"]), "unknown cell"),
        (lambda: RnnConfig(tie_word_embeddings="yes"), "tie_word_embeddings must be true or false"),
        (
            lambda: RnnConfig(tie_word_embeddings=True, embedding_size=100),
            r"needs an embedding_size \(100\) equal to hidden_size \(200\)",
        ),
        (lambda: RnnConfig(num_hidden_layers=0), "num_hidden_layers must be a whole number from 1"),
        (lambda: RnnConfig(dropout=1), r"dropout must be in \[0, 1\)"),
        (lambda: RnnConfig(dropout=float("nan")), "dropout must be a number"),
        (lambda: RnnConfig(embedding_size=10**6), "embedding_size must be a whole number"),
        (lambda: NnlmConfig(order=1), "order must be a whole number from 2 to 1,000"),
        (lambda: NnlmConfig(direct_connections=1), "direct_connections must be true or false"),
        (lambda: NnlmConfig(order=1000, embedding_size=60_000), "more than a million"),
        (lambda: RnnConfig.dropout_entries(0.1, 0.1), "has no attention"),
    ],
)
def test_a_config_that_makes_no_sense(build, message):
    with pytest.raises(CheckpointError, match=message):
        build()


def test_a_dropout_can_be_set():
    assert RnnConfig.dropout_entries(0.3, None) == {"dropout": 0.3}
    assert RnnConfig.dropout_entries(None, None) == {}


@FOLDERS
def test_load_outline_and_convert(folder, tmp_path):
    bundle = load(folder, bare=True)
    found = outline(folder)
    assert type(bundle.model) is found.family.backbone
    convert(folder, tmp_path / "half", dtype="bfloat16")
    model, report = opened(tmp_path / "half")
    assert (report.missing, report.unexpected) == ((), ())
    expected = load_file(folder / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name].bfloat16().float())


@FOLDERS
@pytest.mark.parametrize("options", [[], ["--json"], ["--length", "3", "--batch", "2"]])
def test_inspect(folder, options):
    result = CliRunner().invoke(app, ["inspect", str(folder), *options])
    assert result.exit_code == 0, result.output
    if "--json" in options:
        found = json.loads(result.output)
        model = made(
            found["family"], found["vocabulary"]["size"]
        )  # with its head: a language model
        assert found["parameters"] == sum(p.numel() for p in model.parameters())
        decoder = sum(p.numel() for p in model.backbone.layers.parameters())
        assert found["components"]["decoder"] == decoder


@FOLDERS
def test_attention_is_refused_in_words(folder):
    result = CliRunner().invoke(app, ["inspect", str(folder), "--attention", "a film"])
    assert result.exit_code == 2
    assert "has no attention to look at" in result.output


def test_published_sizes_by_name(tiny_vocab_folder):
    found = outline("lstm-medium").model
    assert (found.config.dropout, found.config.cell) == (0.5, "lstm")
    # 10,000 embeddings of 650; two layers of 4 x 650 x (650 + 650 + 2).
    assert sum(p.numel() for p in found.parameters()) == 6_500_000 + 2 * 2600 * 1302
    assert outline("nnlm").model.config == NnlmConfig()
    model = load("gru-small", tokenizer=tiny_vocab_folder, dropout=0.25).model
    words = load_tokenizer(tiny_vocab_folder).vocab_size  # random weights fit their tokenizer
    assert model.config == RnnConfig(vocab_size=words, cell="gru", dropout=0.25)
    with pytest.raises(CheckpointError, match="has no attention"):
        load("rnn-small", tokenizer=tiny_vocab_folder, attention_dropout=0.1)


def test_operations_are_two_a_weight_of_the_matrices():
    nnlm, rnn = made("nnlm"), made("rnn")
    tied = made("rnn", tie_word_embeddings=True)
    window = 3 * 4
    assert count_flops(nnlm, 9).matrix_parameters == window * 6 + 40 * (6 + window)
    assert count_flops(rnn, 9).matrix_parameters == 2 * 3 * 8 * 16 + 40 * 8
    assert count_flops(tied, 9) == count_flops(rnn, 9)
    assert count_flops(rnn, 9).per_sequence == 9 * 2 * (2 * 3 * 8 * 16 + 40 * 8)


@BOTH
@pytest.mark.parametrize("what", [{"layers": 1}, "embeddings", "backbone"])
def test_a_part_can_be_frozen_and_the_rest_trained(kind, what):
    model = made(kind)
    freeze(model, what)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = Optimizer(model, TrainSection(weight_decay=0.0, beta2=0.99, clip=None))
    model(PackedBatch.of(IDS)).square().sum().backward()
    optimizer.step(0.1, 10, optimizer.gradient_norm())
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == moving
    assert moved


@pytest.mark.parametrize(
    ("kind", "more"), [("nnlm", {}), ("rnn", {}), ("rnn", {"tie_word_embeddings": True})]
)
def test_the_vocabulary_can_grow(kind, more, tmp_path):
    model = made(kind, **more)
    before = model(PackedBatch.of(IDS))
    resize_vocabulary(model, 50)
    logits = model(PackedBatch.of([*IDS, [49]]))
    assert logits.shape == (11, 50)
    torch.testing.assert_close(logits[:10, :40], before)
    assert torch.allclose(model.bias[40:], model.bias[:40].mean())
    again, report = opened(saved(model, tmp_path / "model"))
    assert (report.missing, again.backbone.config.vocab_size) == ((), 50)
