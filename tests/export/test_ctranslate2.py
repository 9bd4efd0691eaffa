"""Folders for CTranslate2: what it computes and writes, against the model and its own converter."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from typer.testing import CliRunner

from pretune.bundle.bundle import Bundle, load, save
from pretune.cli.app import app
from pretune.errors import CheckpointError, RunError
from pretune.export import ctranslate2_folder
from pretune.export.ctranslate2_engine import CTranslate2Engine, EngineModel, engine_task
from pretune.export.ctranslate2_folder import export_ctranslate2, vocabulary
from pretune.export.quality_gate import GateError, GateLimits
from pretune.inference.predict import Predictor
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.translation.translate import Translate, TranslateOptions
from pretune.tokenizers.train import train_tokenizer
from tests.tasks.every_task import CASES, write
from tests.tasks.translations import SIZES

ANY = GateLimits(100, 0)


def stirred(bundle: Bundle) -> Bundle:
    """Every weight counts: no bias is 0 and no LayerNorm is 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in bundle.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return bundle


def translator(**changes: Any) -> Bundle:
    tokenizer = train_tokenizer(["the good film, un film bad 中国"] * 9, "bpe", 290)
    if changes.pop("two_vocabularies", False):
        tokenizer.target = train_tokenizer(["ein guter Film, kein schlechter"] * 9, "bpe", 280)
    task = Translate(TranslateOptions(max_length=64, beams=1))
    config = {**SIZES, **changes}
    return stirred(load("transformer-small", task=task, tokenizer=tokenizer, config=config))


def relative(kind: str, **changes: Any) -> Bundle:
    """A small T5."""
    tokenizer = train_tokenizer(["the good film, un film bad 中国"] * 9, "bpe", 290)
    task = Translate(TranslateOptions(max_length=64, beams=1))
    sizes = {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 1}
    sizes |= {"num_heads": 2, "relative_attention_num_buckets": 8}
    sizes |= {"relative_attention_max_distance": 6, "feed_forward_proj": kind, **changes}
    return stirred(load("t5-small", task=task, tokenizer=tokenizer, config=sizes))


@pytest.fixture(scope="module")
def gpt2() -> Bundle:
    """A small GPT-2 with two rows more than its tokenizer has tokens."""
    tokenizer = train_tokenizer(["the film the film a good one"] * 9, "bpe", 265)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    more = {"vocab_size": tokenizer.vocab_size + 2}
    task = CausalLm(CausalLmOptions(max_length=16))
    return stirred(load("gpt2-small", task=task, tokenizer=tokenizer, config=sizes | more))


class TestEquality:
    def test_gpt2(self, gpt2: Bundle, tmp_path: Path) -> None:
        result = export_ctranslate2(gpt2, tmp_path / "out")
        assert result.difference.largest < 1e-5
        assert result.difference.texts == 36
        assert result.int8 is None

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"normalize_before": True},
            {"two_vocabularies": True},
            {"decoder_attention_heads": 1, "activation_function": "swish"},
        ],
        ids=["marian", "norm first", "two vocabularies", "other heads"],
    )
    def test_translators(self, changes: dict[str, Any], tmp_path: Path) -> None:
        bundle = translator(**changes)
        bundle.model.get_parameter("bias").data.normal_()
        result = export_ctranslate2(bundle, tmp_path / "out")
        assert result.difference.largest < 1e-5
        names = {path.name for path in (tmp_path / "out").glob("*vocabulary.json")}
        both = {"source_vocabulary.json", "target_vocabulary.json"}
        assert names == (both if "two_vocabularies" in changes else {"shared_vocabulary.json"})

    def test_gpt2_with_other_factors_of_its_scores(self, gpt2: Bundle, tmp_path: Path) -> None:
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
        more = {"scale_attn_by_inverse_layer_idx": True}
        task = CausalLm(CausalLmOptions(max_length=16))
        own = load("gpt2-small", task=task, tokenizer=gpt2.tokenizer, config=sizes | more)
        assert export_ctranslate2(stirred(own), tmp_path / "out").difference.largest < 1e-5

    @pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
    def test_t5(self, kind: str, tmp_path: Path) -> None:
        """Relative positions that are shorter than texts; the output scaled, or of its own."""
        bundle = relative(kind, tie_word_embeddings=kind == "relu")
        assert export_ctranslate2(bundle, tmp_path / "out").difference.largest < 1e-5

    def test_its_own_converter_writes_the_same_file(self, gpt2: Bundle, tmp_path: Path) -> None:
        size = gpt2.tokenizer.vocab_size
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "vocab_size": size}
        task = CausalLm(CausalLmOptions(max_length=16))
        bundle = load("gpt2-small", task=task, tokenizer=gpt2.tokenizer, config=sizes)
        (tmp_path / "saved").mkdir()
        save(stirred(bundle), tmp_path / "saved")
        theirs = ctranslate2.converters.TransformersConverter(str(tmp_path / "saved"))
        for name, quantization in (("float32", None), ("int8", "int8")):
            theirs.convert(str(tmp_path / f"{name}-theirs"), quantization=quantization)
            export_ctranslate2(bundle, tmp_path / name, int8=name == "int8")
            for file in ("model.bin", "vocabulary.json"):
                ours = (tmp_path / name / file).read_bytes()
                assert ours == (tmp_path / f"{name}-theirs" / file).read_bytes()

    def test_a_mistake_is_found(
        self, gpt2: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(ctranslate2_folder._ACTIVATIONS, "gelu_new", "RELU")
        with pytest.raises(CheckpointError, match="does not compute the same"):
            export_ctranslate2(gpt2, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_what_it_writes_is_what_the_model_writes(self, tmp_path: Path) -> None:
        case = CASES["translate"]
        bundle = case.bundle(tmp_path, tmp_path)
        export_ctranslate2(bundle, tmp_path / "out")
        engine = CTranslate2Engine(tmp_path / "out", translates=True)
        task: Any = bundle.task
        form = replace(
            bundle,
            model=EngineModel(engine),
            task=engine_task(task),
        )
        records = case.records(12)
        ours, theirs = (Predictor(own, device="cpu").predict(records) for own in (bundle, form))
        assert [a.translation for a in ours] == [b.translation for b in theirs]  # type: ignore[attr-defined]
        scores = [[own.score for own in answers] for answers in (ours, theirs)]  # type: ignore[attr-defined]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


class TestInt8:
    @pytest.mark.parametrize("name", ["causal_lm", "translate"])
    def test_is_measured_by_the_gate(self, name: str, tiny_folder: Path, tmp_path: Path) -> None:
        case = CASES[name]
        bundle = case.bundle(tiny_folder, tmp_path)
        out = tmp_path / "out"
        whole = export_ctranslate2(bundle, tmp_path / "float32").files["model.bin"]
        result = export_ctranslate2(bundle, out, int8=True, data=case.records(9), limits=ANY)
        assert result.int8 is not None
        assert result.files["model.bin"] < 0.5 * whole
        assert result.gate is not None
        (own,) = result.gate.tried
        assert own.lost is not None
        assert own.agreement is None  # texts that are written; a loss
        record = json.loads((out / "int8.json").read_text(encoding="utf-8"))
        assert record["instructions"] == f"ctranslate2 {ctranslate2.__version__}"
        assert record["forced"] is False

    def test_too_bad_is_not_kept(
        self, gpt2: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pretune.export.quality_gate.points_lost", lambda *_: 9.0)
        records = CASES["causal_lm"].records(9)
        with pytest.raises(GateError, match="no setting is within the limits") as error:
            export_ctranslate2(gpt2, tmp_path / "out", int8=True, data=records)
        assert "9.00 worse" in error.value.result.tried[0].reasons[0]
        assert list(tmp_path.iterdir()) == []
        result = export_ctranslate2(gpt2, tmp_path / "out", int8=True, data=records, force=True)
        assert result.gate is not None
        assert result.gate.forced
        assert json.loads((tmp_path / "out" / "int8.json").read_text())["forced"] is True

    def test_a_dialogue_has_no_measure(self, tiny_folder: Path, tmp_path: Path) -> None:
        bundle = CASES["chat"].bundle(tiny_folder, tmp_path)
        with pytest.raises(RunError, match="cannot be done here for the task chat"):
            export_ctranslate2(bundle, tmp_path / "out", int8=True, data=CASES["chat"].records(3))


def test_rows_without_a_token_have_names(gpt2: Bundle) -> None:
    size = gpt2.tokenizer.vocab_size
    words = vocabulary(gpt2.tokenizer, size + 2)
    assert words[:size] == gpt2.tokenizer.tokens(range(size))
    assert words[size:] == [f"[UNUSED{size}]", f"[UNUSED{size + 1}]"]
    assert len({*words}) == size + 2


def test_other_models_are_refused(tiny_folder: Path, gpt2: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a bert model \(bare\) cannot be written for CT"):
        export_ctranslate2(tiny_folder, tmp_path / "out")
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="exists already"):
        export_ctranslate2(gpt2, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_damaged_folder_is_named(gpt2: Bundle, tmp_path: Path) -> None:
    export_ctranslate2(gpt2, tmp_path / "out")
    path = tmp_path / "out" / "model.bin"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="damaged, or no model of CTranslate2"):
        CTranslate2Engine(tmp_path / "out", translates=False)
    with pytest.raises(CheckpointError, match=r"model\.bin: damaged \(500 bytes"):
        load(tmp_path / "out")


def test_the_command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    case = CASES["causal_lm"]
    save(case.bundle(tiny_folder, tmp_path), run)
    data = write(case.rows(9), tmp_path / "dev.jsonl")
    command = ["export", str(run), "--to", "ctranslate2", "--int8", "--data", str(data)]
    result = CliRunner().invoke(app, [*command, "--max-loss", "100"])
    assert result.exit_code == 0, result.output
    assert "ctranslate2.Generator" in result.output
    assert (tmp_path / "run-ctranslate2" / "model.bin").is_file()
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "other")])
    assert result.exit_code == 2
    assert "pip install ctranslate2" in result.output
