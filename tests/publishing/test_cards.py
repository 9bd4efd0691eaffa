"""Cards of other families and tasks than the BERT classifier of the other tests."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from typer.testing import CliRunner

import pretune
from pretune.bundle.bundle import load, save
from pretune.checkpoints.int8_weights import INT8_FILE
from pretune.cli.app import app
from pretune.models import kernels
from pretune.publishing.card import CardFacts, model_card
from pretune.publishing.publish import stage
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.question_answering.answer import AnswerOptions
from tests.publishing.small_runs import REPO, small_recipe, write_data

SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "pad_token_id": 0},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def checkpoint(family: str, kind: str, vocabulary: Path, folder: Path) -> Path:
    """A tiny model as transformers saves it."""
    count = len((vocabulary / "vocab.txt").read_text(encoding="utf-8").splitlines())
    config = transformers.AutoConfig.for_model(family, vocab_size=count, **SIZES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, kind).from_config(config).save_pretrained(folder)
    shutil.copy(vocabulary / "vocab.txt", folder)
    return folder


def run_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the card's two examples print, of the staged model."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)\n```", text, flags=re.S)
    assert len(blocks) == 2
    printed = []
    for block in blocks:
        assert f"'{REPO}'" in block
        capsys.readouterr()
        exec(block.replace(REPO, str(folder)), {})  # noqa: S102 - our own
        printed.append(capsys.readouterr().out)
    return printed


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("gpt2", "GPT2ForSequenceClassification"),
        ("distilbert", "DistilBertForSequenceClassification"),
    ],
)
def test_a_trained_classifier(
    family: str,
    architecture: str,
    tiny_vocab_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = checkpoint(family, "AutoModel", tiny_vocab_folder, tmp_path / "base")
    data = write_data(tmp_path / "d.jsonl", ("bad", "good"))
    pretune.train(small_recipe(base, data, tmp_path / "run"), {"train.max_steps": 2}, quiet=True)
    stage(tmp_path / "run", REPO, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict()["pipeline_tag"] == "text-classification"
    assert f"It is a {architecture} with " in card.text
    ours, theirs = run_code(tmp_path / "out", capsys)
    label, score = re.search(r"label='(\w+)', score=([\d.]+)", ours).groups()
    assert f"'label': '{label}'" in theirs
    assert float(re.search(r"'score': ([\d.]+)", theirs)[1]) == pytest.approx(
        float(score), abs=1e-4
    )


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_masked_language_model(
    family: str, tiny_vocab_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(family, "AutoModelForMaskedLM", tiny_vocab_folder, tmp_path / "m")
    stage(folder, REPO, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict()["pipeline_tag"] == "fill-mask"
    assert card.data.to_dict()["tags"] == ["pretune", "mask_lm"]
    assert "finds the words that fit the gaps" in card.text
    assert "## Labels" not in card.text
    ours, theirs = run_code(tmp_path / "out", capsys)
    assert "Candidate(token=" in ours
    assert "logits=tensor" in theirs


def test_a_classic_is_opened_by_pretune_alone(tiny_vocab_folder: Path, tmp_path: Path) -> None:
    sizes = {"embedding_size": 4, "hidden_size": 4}
    task = CausalLm(CausalLmOptions())
    bundle = load("lstm-small", tokenizer=tiny_vocab_folder, config=sizes, task=task)
    (tmp_path / "m").mkdir()
    save(bundle, tmp_path / "m")
    stage(tmp_path / "m", REPO, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict()["library_name"] == "pretune"
    assert "saved by pretune; pretune opens it." in card.text
    assert "transformers" not in card.text


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_model_that_finds_answers(
    family: str, tiny_vocab_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = checkpoint(family, "AutoModel", tiny_vocab_folder, tmp_path / "base")
    data = tmp_path / "qa.jsonl"
    row = {
        "question": "who",
        "context": "the good film",
        "answers": {"text": [], "answer_start": []},
    }
    data.write_text(f"{json.dumps(row)}\n" * 4, encoding="utf-8")
    recipe = small_recipe(base, data, tmp_path / "run", validation=str(data))
    recipe["task"] = AnswerOptions.of_length(32, no_answer=True).model_dump()
    run = pretune.train(recipe, {"train.max_steps": 2}, quiet=True)
    stage(tmp_path / "run", REPO, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    said = card.data.to_dict()
    assert said["pipeline_tag"] == "question-answering"
    assert {"exact_match", "f1"} <= set(said["metrics"])
    assert "finds the answer to a question" in card.text
    assert "(4 examples)" in card.text
    assert "longer texts are read in parts" in card.text
    assert f"scores over {run.details['threshold']:.2f} more than the best span" in card.text
    ours, theirs = run_code(tmp_path / "out", capsys)
    assert "AnswerPrediction(answer=" in ours
    assert "start_logits=tensor" in theirs


class TestASmallerModel:
    """What was removed and what was rounded is said, with what it cost."""

    @pytest.fixture
    def classifier(self, tiny_folder: Path, tmp_path: Path) -> Path:
        bundle = load(tiny_folder, task=Classify(ClassifyOptions(max_length=16), ["bad", "good"]))
        (tmp_path / "model").mkdir()
        save(bundle, tmp_path / "model")
        write_data(tmp_path / "d.jsonl", ("bad", "good"))
        return tmp_path / "model"

    def test_that_was_pruned(self, classifier: Path, tmp_path: Path) -> None:
        out, data = str(tmp_path / "small"), str(tmp_path / "d.jsonl")
        command = ["prune", str(classifier), "--ffn", "0.5", "--data", data, "-o", out]
        assert CliRunner().invoke(app, command).exit_code == 0
        recipe = small_recipe(tmp_path / "small", tmp_path / "d.jsonl", tmp_path / "run")
        pretune.train(recipe, {"train.max_steps": 1}, quiet=True)
        # The smaller model itself, and a run that recovers it.
        for number, source in enumerate(("small", "run")):
            stage(tmp_path / source, REPO, tmp_path / f"out{number}")
            text = (tmp_path / f"out{number}/README.md").read_text(encoding="utf-8")
            assert "## What was removed" in text
            assert "| feed-forward neurons a layer | 64 | 32 | 50.0 % |" in text
            assert "| accuracy | " in text
        # A damaged file says nothing.
        (tmp_path / "small" / "manifest.json").unlink()
        (tmp_path / "small" / "pruning.json").write_text('{"before": {"layers": "<b>"}}')
        stage(tmp_path / "small", REPO, tmp_path / "out2")
        text = (tmp_path / "out2/README.md").read_text(encoding="utf-8")
        assert "## What was removed" not in text

    def test_in_8_bits(
        self, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr(kernels, "SMALLEST", 512)
        out, data = str(tmp_path / "small"), str(tmp_path / "d.jsonl")
        command = ["quantize", str(classifier), "--data", data, "-o", out, "--force"]
        assert CliRunner().invoke(app, command).exit_code == 0
        stage(tmp_path / "small", REPO, tmp_path / "out")
        card = ModelCard.load(tmp_path / "out/README.md")
        assert card.data.to_dict()["library_name"] == "pretune"
        assert "saved by pretune; pretune opens it." in card.text
        assert "## 8 bits" in card.text
        assert re.search(r"accuracy is [\d.]+ in float32, and [\d.]+ in 8 bits\.", card.text)
        assert "of the answers are the same." in card.text
        # It is what was quantized, tensor by tensor.
        ours, theirs = (load_file(tmp_path / n / INT8_FILE) for n in ("small", "out"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        (answer,) = pretune.predict(pretune.load(tmp_path / "out"), ["the good film"])
        assert answer.label in ("bad", "good")

    def test_by_force(self, classifier: Path, tmp_path: Path) -> None:
        record = {"setting": "all | <b>matrices", "forced": True, "float32": "1", "agreement": 9}
        facts = CardFacts(
            REPO, load(classifier).task, "BertForSequenceClassification", 9, quantized=record
        )
        text = model_card(facts)
        assert "**That is more than the limits allow: it was written with `--force`.**" in text
        assert "9.00 % of the answers are the same." in text
        assert "<b>" not in text
