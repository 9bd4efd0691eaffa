"""Exports to ONNX: every family and head by onnxruntime, in float32 and in 8 bits."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from typer.testing import CliRunner

from pretune.api import predict
from pretune.bundle.bundle import load, save
from pretune.cli.app import app
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError, RunError
from pretune.evaluation.examine import examine
from pretune.export import onnx_files
from pretune.export.onnx_check import compare
from pretune.export.onnx_files import export_onnx, save_onnx
from pretune.export.onnx_graph import GraphWriter
from pretune.export.onnx_models import Exported, Pooling, write_graphs
from pretune.export.onnx_runtime import OnnxFile, OnnxModel
from pretune.export.quality_gate import GateLimits
from pretune.inference.embed import POOLINGS, Embedder
from pretune.inference.predict import column_names
from pretune.models.families import FAMILIES
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import read_for
from tests.export.models import CASES as EXPORTED
from tests.export.models import HEADS, NEWER, NEWER_HEADS, random_model
from tests.tasks.every_task import CASES


def written(exported: Exported, folder: Path, **options: Any) -> dict[str, OnnxFile]:
    """The graphs of a model, valid by onnx's own checker, and opened."""
    files = {}
    for name, graph in write_graphs(exported, partial(GraphWriter, **options)).items():
        model = graph.model({"head": exported.head}, "0")
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{name}.onnx")
        files[name] = OnnxFile(folder / f"{name}.onnx")
    return files


@pytest.mark.parametrize(("family", "head"), EXPORTED)
def test_every_family_and_head_computes_the_same(family: str, head: str, tmp_path: Path) -> None:
    exported = random_model(family, head)
    difference = compare(exported, written(exported, tmp_path))
    assert difference.largest < 5e-6
    assert difference.texts >= 36


#: One for each thing that is newer.
FEW = [
    ("modernbert", "sequence_classification"),
    ("qwen3", "causal_lm"),
    ("gemma3_text", "causal_lm"),
    ("t5", "translation"),
]


@pytest.mark.parametrize(
    ("family", "head"),
    [pytest.param(*pair, marks=[] if pair in FEW else pytest.mark.slow) for pair in NEWER_HEADS],
)
def test_windows_gates_and_rotary_positions(family: str, head: str, tmp_path: Path) -> None:
    exported = random_model(family, head)
    assert compare(exported, written(exported, tmp_path)).largest < 5e-6
    # Opset 18 has another form of some operators.
    assert compare(exported, written(exported, tmp_path, opset=20)).largest < 5e-6


def test_rotary_positions_that_depend_on_the_length_are_refused(tmp_path: Path) -> None:
    family = FAMILIES["llama"]
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    config = family.backbone.config_class.from_dict({**NEWER["llama"], "rope_parameters": rope})
    with pytest.raises(CheckpointError, match="'dynamic' depend on the length"):
        written(Exported(family.build(config, "causal_lm"), "causal_lm", segments=False), tmp_path)


@pytest.mark.parametrize(("family", "head"), EXPORTED)
def test_int8_is_near_and_a_third_of_the_size(family: str, head: str, tmp_path: Path) -> None:
    exported = random_model(family, head)
    difference = compare(exported, written(exported, tmp_path, int8=True))
    assert 1e-6 < difference.largest < 0.1
    assert difference.cosine > 0.99
    kinds = {
        onnx.TensorProto.DataType.Name(tensor.data_type): tensor.name
        for path in tmp_path.glob("*.onnx")
        for tensor in onnx.load(path).graph.initializer
        if len(tensor.dims) == 2 and min(tensor.dims) > 1 and "sinusoids" not in tensor.name
    }
    # All that is left in float32 are computed sinusoids, which have no name in the model.
    assert kinds.pop("FLOAT", "constant_1").startswith("constant")
    assert set(kinds) == {"INT8"}


@pytest.mark.parametrize("page", ["docs/export.md", "docs/zh-CN/export.md"])
def test_the_docs_have_a_row_for_every_family_and_head(page: str) -> None:
    """The table of bench/export_parity.py, with what is allowed as its bounds."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \| (\S+) \| (\S+) \| (\S+) \|$", text, re.M)
    assert [(family, head) for family, head, *_ in rows] == HEADS
    for _, _, plain, int8, cosine in rows:
        assert float(plain) < 5e-6
        assert float(int8) < 0.1
        assert float(cosine) > 0.99


@pytest.mark.parametrize("opset", [20, 24])
@pytest.mark.parametrize(("family", "head"), [("bert", "masked_lm"), ("gpt2", "causal_lm")])
def test_later_opsets(family: str, head: str, opset: int, tmp_path: Path) -> None:
    exported = random_model(family, head)
    files = written(exported, tmp_path, opset=opset)
    assert compare(exported, files).largest < 5e-6
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset


def test_inputs_and_outputs_have_the_names_that_others_look_for(tmp_path: Path) -> None:
    (model,) = written(random_model("gpt2", "causal_lm"), tmp_path).values()
    assert list(model.inputs) == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{i}.{part}" for i in range(2) for part in ("key", "value")),
    ]
    assert model.outputs == [
        "logits",
        *(f"present.{i}.{part}" for i in range(2) for part in ("key", "value")),
    ]
    files = written(random_model("marian", "translation"), tmp_path)
    assert files["encoder_model"].outputs == ["last_hidden_state"]
    decoder = files["decoder_model_merged"]
    assert list(decoder.inputs)[-1] == "use_cache_branch"
    assert "past_key_values.0.encoder.key" in decoder.inputs
    assert "present.0.decoder.value" in decoder.outputs
    (answers,) = written(random_model("bert", "question_answering"), tmp_path).values()
    assert list(answers.inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    assert answers.outputs == ["start_logits", "end_logits"]


def test_a_decoder_reads_texts_that_are_padded_on_the_left(tmp_path: Path) -> None:
    exported = random_model("gpt2", "sequence_classification")
    (file,) = written(exported, tmp_path).values()
    ids, mask = np.array([[5, 6, 7]]), np.ones((1, 3), np.int64)
    alone = file.run({"input_ids": ids, "attention_mask": mask})["logits"]
    left = [np.pad(array, ((0, 0), (4, 0))) for array in (ids, mask)]
    behind = file.run({"input_ids": left[0], "attention_mask": left[1]})["logits"]
    np.testing.assert_allclose(behind, alone, atol=1e-5)


def test_a_decoder_answers_about_the_token_before_padding(tmp_path: Path) -> None:
    exported = random_model("gpt2", "sequence_classification")
    backbone = exported.model.backbone
    backbone.config = replace(backbone.config, pad_token_id=7)
    (file,) = written(exported, tmp_path).values()
    texts = [[5, 6, 7, 7], [5, 6, 8], [7]]
    ids, mask = np.full((3, 4), 7), np.zeros((3, 4), np.int64)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, 1
    found = file.run({"input_ids": ids, "attention_mask": mask})["logits"]
    with torch.no_grad():
        expected = exported.model(PackedBatch.of(texts))
        before = exported.model(PackedBatch.of([[5, 6]]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found[:1], before, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("kind", POOLINGS[False])
def test_vectors_are_pooled_as_embed_does(kind: str, opset: int, tmp_path: Path) -> None:
    exported = replace(random_model("bert", "backbone"), pooling=Pooling(kind, False, 10))
    assert compare(exported, written(exported, tmp_path, opset=opset)).largest < 5e-6


def test_an_operation_without_a_node_is_named() -> None:
    exported = random_model("bert", "sequence_classification")
    exported.model.answer = torch.sinh  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="'sinh', which cannot be written as ONNX"):
        write_graphs(exported, GraphWriter)


def test_a_model_that_is_no_transformer_is_refused() -> None:
    family = FAMILIES["rnn"]
    model = family.build(family.backbone.config_class.from_dict({"vocab_size": 9}), "causal_lm")
    with pytest.raises(CheckpointError, match="rnn model cannot be written as ONNX"):
        write_graphs(Exported(model, "causal_lm", segments=False), GraphWriter)


def test_weights_over_the_limit_go_to_a_file_beside(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(onnx_files, "LARGEST_FILE", 1000)
    exported = random_model("bert", "backbone")
    (graph,) = write_graphs(exported, GraphWriter).values()
    save_onnx(onnx, graph.model({}, "0"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 40_000
    assert (tmp_path / "model.onnx_data").stat().st_size > 15_000
    assert compare(exported, {"model": OnnxFile(tmp_path / "model.onnx")}).largest < 5e-6


def test_damaged_files_are_named(tmp_path: Path) -> None:
    written(random_model("bert", "backbone"), tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.onnx: damaged, or no ONNX model"):
        OnnxFile(path)
    with pytest.raises(CheckpointError, match=r"no such file"):
        OnnxFile(tmp_path / "other.onnx")


def test_an_export_that_differs_is_not_kept(tiny_folder: Path, tmp_path: Path, monkeypatch: Any):
    real = GraphWriter.layer_norm

    def wrong(self: GraphWriter, x: str, weight: Any, bias: Any, eps: float) -> str:
        return real(self, x, weight, bias, 1e-3)

    monkeypatch.setattr(GraphWriter, "layer_norm", wrong)
    with pytest.raises(CheckpointError, match="does not compute the same"):
        export_onnx(tiny_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# The whole folder


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT, exported with int8."""
    folder = tmp_path_factory.mktemp("export") / "tiny"
    result = export_onnx(tiny_folder, folder, int8=True)
    assert result.difference.largest < 5e-6
    assert set(result.files) == {"model.onnx", "model_quantized.onnx"}
    return folder


def test_the_folder_is_as_on_the_hub(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "example.py"):
        assert (folder / name).is_file()
    special = json.loads((folder / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert special.items() >= {"cls_token": "[CLS]", "pad_token": "[PAD]"}.items()
    meta = OnnxFile(folder / "onnx" / "model_quantized.onnx").metadata
    assert meta["head"] == "backbone"
    assert "7 bits" in meta["int8"]


def test_transformers_reads_the_same_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["the good film", "un-affable, 42!"]
    theirs = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    ours = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    assert [line.ids for line in ours.encode_batch(texts)] == theirs


def test_vectors_are_those_of_embed(folder: Path, tiny_folder: Path) -> None:
    bundle = load(tiny_folder)
    texts = ["the good film", "bad"]
    vectors = Embedder(bundle).embed(texts)
    inputs = {"attention_mask": [], "input_ids": []}
    tokenizer = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    for line in tokenizer.encode_batch(texts):
        inputs["input_ids"].append(line.ids)
        inputs["attention_mask"].append(line.attention_mask)
    arrays = {name: np.array(rows) for name, rows in inputs.items()}
    arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
    theirs = OnnxFile(folder / "onnx" / "model.onnx").run(arrays, "sentence_embedding")
    np.testing.assert_allclose(theirs["sentence_embedding"], vectors, atol=1e-5)


def run_example(folder: Path, capsys: Any, monkeypatch: Any, *texts: str) -> str:
    monkeypatch.setattr(sys, "argv", ["example.py", *texts])
    capsys.readouterr()
    runpy.run_path(str(folder / "example.py"))
    return str(capsys.readouterr().out)


def test_the_example_runs(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    out = run_example(folder, capsys, monkeypatch, "the good film", "the good film", "bad")
    # The dot products of three vectors of length 1, as numpy prints them.
    table = np.array(out.replace("[", "").replace("]", "").split(), float).reshape(3, 3)
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-5)
    assert table[0, 1] == pytest.approx(1, abs=1e-5) != table[0, 2]


def test_an_existing_folder_is_left_alone(tiny_folder: Path, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(RunError, match="exists already"):
        export_onnx(tiny_folder, folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("opset", "why"), [(16, "has no LayerNormalization"), (99, "not known")])
def test_opsets_out_of_range(tiny_folder: Path, tmp_path: Path, opset: int, why: str) -> None:
    with pytest.raises(RunError, match=why):
        export_onnx(tiny_folder, tmp_path / "out", opset=opset)
    assert not (tmp_path / "out").exists()


def test_minilm(minilm: Path, tmp_path: Path) -> None:
    result = export_onnx(minilm, tmp_path / "out", int8=True)
    assert result.difference.largest < 1e-5
    assert result.files["model_quantized.onnx"] < 0.3 * result.files["model.onnx"]


#: Prints the vectors of two texts; run in a folder where npm has installed transformers.js.
IN_JAVASCRIPT = """
import { pipeline, env } from '@huggingface/transformers';
env.allowRemoteModels = false;
env.localModelPath = process.argv[1] + '/';
const embed = await pipeline('feature-extraction', process.argv[2], { dtype: 'fp32' });
const out = await embed(['the good film', 'bad'], { pooling: 'mean', normalize: true });
console.log(JSON.stringify(out.tolist()));
"""


def test_transformers_js_gives_the_same_vectors(folder: Path, tiny_folder: Path) -> None:
    place = os.environ.get("PRETUNE_NODE_MODULES")
    if not place:
        pytest.skip("transformers.js is not installed: PRETUNE_NODE_MODULES names no folder")
    command = ("node", "--input-type=module", "-e", IN_JAVASCRIPT)
    done = subprocess.run(
        [*command, str(folder.parent), folder.name],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ours = Embedder(load(tiny_folder)).embed(["the good film", "bad"])
    np.testing.assert_allclose(json.loads(done.stdout), ours, atol=1e-5)


# With a task


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of random weights, saved as a run would be."""
    bundle = load(tiny_folder, task=Classify(ClassifyOptions(max_length=24), ["bad", "good"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.nn.init.normal_(bundle.model.get_parameter("classifier.weight"))
    folder = tmp_path_factory.mktemp("run") / "tickets"
    folder.mkdir()
    save(bundle, folder)
    return folder


@pytest.fixture(scope="module")
def labelled(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with the labels that the classifier gives them."""
    texts = [f"the {word} film {word}" for word in ("good", "bad", "un", "a", "x1", "42", "able")]
    rows = [f"{text}\t{answer.label}" for text, answer in zip(texts, predict(str(run), texts))]  # type: ignore[attr-defined]  # noqa: B905
    path = tmp_path_factory.mktemp("data") / "dev.tsv"
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    return path


def records(run: Path, data: Path) -> Records:
    bundle = load(run)
    assert bundle.task is not None
    return read_for(bundle.task, data, columns=column_names(bundle, None))


def test_int8_passes_the_gate(run: Path, labelled: Path, tmp_path: Path) -> None:
    out, limits = tmp_path / "out", GateLimits(100, 0)
    gate = export_onnx(run, out, int8=True, data=records(run, labelled), limits=limits).gate
    assert gate is not None
    (own,) = gate.tried
    assert (gate.metric, gate.value, gate.examples) == ("accuracy", 1.0, 7)
    # The labels are the model's own answers: what int8 gets right is what it agrees on.
    assert own.metric is not None
    assert 100 * own.metric == pytest.approx(own.agreement)
    assert own.lost == pytest.approx(100 - (own.agreement or 0))
    assert own.megabytes == pytest.approx(
        (out / "onnx" / "model_quantized.onnx").stat().st_size / 1e6
    )
    record = json.loads((out / "onnx" / "int8.json").read_text(encoding="utf-8"))
    assert (record["metric"], record["forced"]) == ("accuracy", False)
    assert record["instructions"].startswith("onnxruntime ")


def test_a_bad_int8_is_not_kept(run: Path, labelled: Path, tmp_path: Path, monkeypatch: Any):
    real = OnnxModel.forward
    monkeypatch.setattr(OnnxModel, "forward", lambda self, batch, **more: -real(self, batch))
    monkeypatch.setattr("pretune.export.onnx_files.refuse_different", lambda *_, **__: None)
    out = tmp_path / "out"
    command = ["export", str(run), "--to", "onnx", "--int8", "--data", str(labelled)]
    result = CliRunner().invoke(app, [*command, "-o", str(out)], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    # The table, and then why.
    assert "accuracy 100.00 worse, at most 0.5; 0.00 % agree" in result.output
    assert "no setting is within the limits" in result.output
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(app, [*command, "-o", str(out), "--force"])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "onnx" / "int8.json").read_text(encoding="utf-8"))["forced"] is True


@pytest.mark.parametrize("name", ["multilabel", "regress", "tag", "tag_crf", "choose", "answer"])
def test_int8_of_every_task_has_a_measure(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    case, limits = CASES[name], GateLimits(100, 0)
    bundle = case.bundle(tiny_folder, tmp_path)
    gate = export_onnx(
        bundle, tmp_path / "out", int8=True, data=case.records(9), limits=limits
    ).gate
    assert gate is not None
    assert gate.tried[0].lost is not None


@pytest.mark.parametrize("name", ["causal_lm", "mask_lm_each"])
def test_of_language_models_the_loss_is_measured(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """In float32 it is the model's own: 0 % are lost."""
    case = CASES[name]
    bundle = case.bundle(tiny_folder, tmp_path)
    exported = onnx_files.exported_model(bundle)
    form = OnnxModel(written(exported, tmp_path)["model"], exported)
    ours, theirs = (examine(b, case.records(9)) for b in (bundle, replace(bundle, model=form)))
    assert theirs.metrics == pytest.approx(ours.metrics, rel=1e-5)
    np.testing.assert_allclose(theirs.losses, ours.losses, atol=1e-5)


def test_vectors_are_measured_by_their_cosine(tiny_folder: Path, tmp_path: Path) -> None:
    texts = ["the good film", "bad", "un film 中国"]
    gate = export_onnx(tiny_folder, tmp_path / "out", int8=True, data=texts).gate
    assert gate is not None
    assert (gate.tried[0].agreement, gate.tried[0].metric) == (100, None)


def test_the_program_says_which_file_is_in_8_bits(
    run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    program = export_onnx(run, out, int8=True).example
    opened = '(here / "onnx/model.onnx")  # in 8 bits: onnx/model_quantized.onnx'
    assert opened in program
    (out / "onnx/model.onnx").unlink()
    text = program.replace("onnx/model.onnx", "onnx/model_quantized.onnx", 1)
    (out / "example.py").write_text(text, encoding="utf-8")
    assert run_example(out, capsys, monkeypatch, "the good film").strip() in ("good", "bad")
    assert "in 8 bits" not in export_onnx(run, tmp_path / "whole").example


@pytest.mark.parametrize("name", ["chat", "translate", "mask_lm_pairs"])
def test_what_has_no_measure_is_said(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES[name].bundle(tiny_folder, tmp_path)
    with pytest.raises(RunError, match="cannot be done here for this kind of model"):
        export_onnx(bundle, tmp_path / "out", int8=True, data=CASES[name].records(3))
    assert not (tmp_path / "out").exists()


def test_the_model_by_onnxruntime_answers_as_the_model_does(run: Path, tmp_path: Path) -> None:
    bundle = load(run)
    exported = onnx_files.exported_model(bundle)
    form = OnnxModel(written(exported, tmp_path)["model"], exported)
    texts = ["the good film", "bad", "un able 42"]
    ours, theirs = (predict(b, texts) for b in (bundle, replace(bundle, model=form)))
    assert [a.label for a in ours] == [b.label for b in theirs]  # type: ignore[attr-defined]
    scores = [[answer.scores["good"] for answer in answers] for answers in (ours, theirs)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_the_command(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(run), "--to", "onnx", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "compared with the model on 36 random texts" in result.output
    assert "tokenizer.encode_batch(texts)" in result.output
    (answer,) = predict(str(run), ["the good film"])
    shown = run_example(out, capsys, monkeypatch, "the good film")
    assert shown.strip() == answer.label  # type: ignore[attr-defined]


def test_a_missing_package_is_named(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(run), "--to", "onnx", "-o", str(out)])
    assert result.exit_code == 2
    assert "pip install 'pretune[export]'" in result.output


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--to", "onyx"], "no format is called 'onyx'"),
        (["--to", "gguf"], "a bert model"),
        (["--to", "gguf", "--int8"], "are for --to onnx and"),
        (["--to", "gguf", "--force"], "is about --data"),
        (["--to", "ctranslate2", "--opset", "17"], "--opset is for --to onnx"),
        (["--to", "onnx", "--int8", "--max-loss", "3"], "--max-loss is about --data"),
        (["--to", "onnx", "--data", "dev.tsv"], "Add --int8"),
        (["--to", "onnx", "--opset", "9"], "has no LayerNormalization"),
    ],
)
def test_mistakes_end_with_code_2(run: Path, tmp_path: Path, more: list[str], why: str) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["export", str(run), "-o", str(out), *more])
    assert (result.exit_code, result.exception is None) == (2, False)
    assert why in " ".join(result.output.split())
    assert not out.exists()
