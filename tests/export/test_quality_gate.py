from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pretune.bundle.bundle import Bundle, load, save
from pretune.bundle.convert import convert
from pretune.checkpoints.int8_weights import INT8_FILE, rounded
from pretune.errors import CheckpointError, Note, RunError
from pretune.export import quality_gate
from pretune.export.pruning import PruningPlan, prune
from pretune.export.quality_gate import GateLimits, candidates, points_lost, quantize
from pretune.inference.embed import Embedder
from pretune.inference.predict import Predictor
from pretune.models import kernels
from pretune.models.packed import instruction_set
from tests.tasks.every_task import CASES

ANY = GateLimits(100, 0)


@pytest.fixture(autouse=True)
def _no_matrix_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 512)


@pytest.fixture
def classifier(tiny_folder: Path, tmp_path: Path) -> Bundle:
    return CASES["classify"].bundle(tiny_folder, tmp_path)


def scores(bundle: Bundle, **options: Any) -> torch.Tensor:
    predictor = Predictor(bundle, device="cpu", **options)
    answers = predictor.predict(CASES["classify"].records(9))
    return torch.tensor([list(answer.scores.values()) for answer in answers])


def artifact(bundle: Bundle, folder: Path, **changes: Any) -> Path:
    result = replace(quantize(bundle, CASES["classify"].records(9), ANY), **changes)
    folder.mkdir()
    save(bundle, folder, int8=result.record())
    return folder


@pytest.mark.parametrize("outputs", [0, 1])
def test_rounding_is_off_by_half_a_step_at_most(outputs: int) -> None:
    weight = torch.randn(6, 9)
    weight[:, 0] = weight[0] = 0.0  # a row and a column that say nothing
    integers, scale = rounded(weight, outputs)
    assert scale.shape == ((6, 1) if outputs == 0 else (1, 9))
    assert (integers * scale - weight).abs().le(scale / 2 + 1e-7).all()
    assert integers.abs().amax(1 - outputs).tolist()[1:] == [127] * (5 if outputs == 0 else 8)


def test_the_file_answers_as_the_model_that_was_measured(
    classifier: Bundle, tmp_path: Path
) -> None:
    exact = scores(classifier)
    folder = artifact(classifier, tmp_path / "int8")
    measured = scores(classifier)
    assert not torch.equal(measured, exact)
    torch.testing.assert_close(measured, exact, atol=0.05, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was measured on this machine
        again = load(folder)
    torch.testing.assert_close(scores(again), measured, atol=1e-4, rtol=0)
    # Each matrix and table takes a byte a weight and four a row; the rest is as it was.
    sizes = {n: t.numel() * t.element_size() for n, t in load_file(folder / INT8_FILE).items()}
    assert sizes["bert.embeddings.word_embeddings.weight_int8"] * 4 == (
        classifier.backbone.embeddings.tokens.weight.numel() * 4
    )
    assert sizes["bert.encoder.layer.0.attention.self.query.weight_scale"] == 32 * 4
    assert sizes["classifier.weight"] == 3 * 32 * 4
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert record["quantization_config"]["quant_method"] == "pretune_int8"
    assert record["quantization_config"]["instructions"] == instruction_set()
    assert record["quantization_config"]["forced"] is False


def test_products_are_in_8_bits_in_any_precision(classifier: Bundle, tmp_path: Path) -> None:
    again = load(artifact(classifier, tmp_path / "int8"))
    inexact = scores(again)
    for linear in candidates(again.model).values():
        linear.int8 = False
    # The weights are the same now; only the inputs are no longer rounded.
    assert not torch.equal(scores(again), inexact)
    torch.testing.assert_close(scores(again, precision="int8"), inexact, atol=1e-5, rtol=0)


def test_transformers_does_not_make_weights_up(classifier: Bundle, tmp_path: Path) -> None:
    folder = artifact(classifier, tmp_path / "int8")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    # Converted, it is floats again, which transformers opens: what the integers stand for.
    convert(folder, tmp_path / "floats")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "floats").state_dict()
    own = load_file(folder / INT8_FILE)
    name = "encoder.layer.1.output.dense.weight"
    whole = own[f"bert.{name}_int8"] * own[f"bert.{name}_scale"]
    assert torch.equal(theirs[name], whole)


def test_gpt2_has_its_matrices_the_other_way_round(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES["causal_lm"].bundle(tiny_folder, tmp_path)
    if bundle.family.model_type != "gpt2":
        pytest.fail("the case is expected to be a GPT-2")
    result = quantize(bundle, CASES["causal_lm"].records(9), ANY)
    (tmp_path / "int8").mkdir()
    save(bundle, tmp_path / "int8", int8=result.record())
    again = load(tmp_path / "int8")
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(parameter, bundle.model.get_parameter(name), rtol=1e-6, atol=0)
    assert candidates(again.model).keys() == {
        name for name, part in candidates(bundle.model).items() if part.int8
    }


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (4, ["all but 2 of 4 matrices", "all but 1 of 4 matrices", "all matrices"]),
        (1, ["all matrices"]),
    ],
)
def test_a_setting_that_leaves_no_matrix_out_says_so(count: int, names: list[str]) -> None:
    errors = {f"matrix {number}": float(number) for number in range(count)}
    settings = quality_gate.gate_settings(torch.nn.Module(), errors)
    assert [setting.name for setting in settings] == [*names, "all matrices, tables"]


def test_settings_go_from_safest_to_fastest(classifier: Bundle) -> None:
    before = {n: p.clone() for n, p in classifier.model.named_parameters()}
    # Everything is refused: nothing is left of what was tried.
    refusing = GateLimits(0, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_gate, "_agreement", lambda base, own: 99.0)
        result = quantize(classifier, CASES["classify"].records(24), refusing)
    assert result.chosen is None
    assert all(own.reasons for own in result.tried)
    assert result.tried[-1].reasons[-1] == "99.00 % agree, at least 100"
    shares = [own.share for own in result.tried]
    assert shares == sorted(shares)
    megabytes = [own.megabytes for own in result.tried]
    assert megabytes == sorted(megabytes, reverse=True)
    assert [own.matrices for own in result.tried][-2:] == [9, 9]  # 4 a layer, and the pooler
    for name, parameter in classifier.model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not any(part.int8 for part in candidates(classifier.model).values())


def test_by_force_the_safest_is_taken_and_says_so(classifier: Bundle, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality_gate, "points_lost", lambda *given: 9.0)
        result = quantize(classifier, CASES["classify"].records(9), GateLimits(), force=True)
    assert result.forced
    assert result.chosen is result.tried[0]
    assert "9.00 worse, at most 0.5" in result.tried[0].reasons[0]
    assert sum(bool(part.int8) for part in candidates(classifier.model).values()) == 5
    (tmp_path / "int8").mkdir()
    save(classifier, tmp_path / "int8", int8=result.record())
    with pytest.warns(Note, match="--force"):
        load(tmp_path / "int8")


def test_elsewhere_it_is_said_that_it_was_not_measured(classifier: Bundle, tmp_path: Path) -> None:
    folder = artifact(classifier, tmp_path / "int8", instructions="AVX9000, weights of 8 bits")
    with pytest.warns(Note, match="measured on AVX9000.*answers may differ"):
        load(folder)


@pytest.mark.parametrize(
    ("task", "metric", "after", "lost"),
    [
        ("classify", "accuracy", 0.89, 1.0),
        ("answer", "f1", 0.4, 0.5),
        ("causal_lm", "loss", 0.909, 1.0),
        ("causal_lm", "perplexity", 0.81, -10.0),
    ],
)
def test_points(task: str, metric: str, after: float, lost: float) -> None:
    assert points_lost(task, metric, 0.9, after) == pytest.approx(lost)


def test_a_loss_of_zero_may_not_grow() -> None:
    """Of nothing there is no percent: a model that knew all and knows nothing would pass."""
    assert points_lost("causal_lm", "loss", 0.0, 5.0) == float("inf")
    assert points_lost("causal_lm", "loss", 0.0, 0.0) == 0


@pytest.mark.parametrize(
    "name",
    ["multilabel", "regress", "choose", "tag", "tag_crf", "answer", "mask_lm_each", "translate"],
)
def test_every_task_has_a_measure(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES[name].bundle(tiny_folder, tmp_path)
    result = quantize(bundle, CASES[name].records(12), ANY)
    assert result.chosen is result.tried[-1]
    own = result.tried[-1]
    assert own.lost is not None
    assert (own.agreement is None) == (name in ("mask_lm_each", "translate"))
    assert own.agreement is None or 0 <= own.agreement <= 100


def test_scores_agree_within_two_percent_of_their_range(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, records = CASES["regress"].bundle(tiny_folder, tmp_path), CASES["regress"].records(14)
    answered = quality_gate._answer(bundle, records, None)
    assert answered.examined is not None
    moved = []
    for number, example in enumerate(answered.examined.examples):
        value = float(example.grade.answer) + (0.059 if number % 2 else 0.061)  # of 0 to 3
        moved.append(replace(example, grade=replace(example.grade, answer=f"{value:.4f}")))
    other = replace(answered, examined=replace(answered.examined, examples=tuple(moved)))
    assert quality_gate._agreement(answered, other) == 50


def test_vectors_are_compared_by_their_cosine(tiny_folder: Path, tmp_path: Path) -> None:
    bundle, texts = load(tiny_folder), ["the good film", "bad", "un film 中国"]
    exact = Embedder(bundle, device="cpu").embed(texts)
    result = quantize(bundle, texts, ANY)
    own = result.tried[-1]
    assert (own.metric, own.lost, result.metric) == (None, None, None)
    assert own.agreement == 100
    inexact = Embedder(bundle, device="cpu").embed(texts)
    assert 0.99 < (exact * inexact).sum(1).min() < 1 - 1e-7


def _without_scale(folder: Path) -> None:
    tensors = load_file(folder / INT8_FILE)
    del tensors["bert.pooler.dense.weight_scale"]
    save_file(tensors, folder / INT8_FILE)


def _other_scale(folder: Path) -> None:
    tensors = load_file(folder / INT8_FILE)
    tensors["bert.pooler.dense.weight_scale"] = torch.ones(3, 1)
    save_file(tensors, folder / INT8_FILE)


def _not_finite(folder: Path) -> None:
    tensors = load_file(folder / INT8_FILE)
    tensors["bert.pooler.dense.weight_scale"][3] = float("nan")
    save_file(tensors, folder / INT8_FILE)


def _cut(folder: Path) -> None:
    path = folder / INT8_FILE
    path.write_bytes(path.read_bytes()[:-5])


def _two(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_scale, "pooler.dense.weight_int8' is not a matrix"),
        (_other_scale, "pooler.dense.weight_int8' is not a matrix"),
        (_not_finite, "pooler.dense.weight_scale' holds 1 values that are not finite"),
        (_cut, "damaged"),
        (_two, "which are two models"),
    ],
)
def test_damaged_folders(
    damage: Callable[[Path], None], message: str, classifier: Bundle, tmp_path: Path
) -> None:
    folder = artifact(classifier, tmp_path / "int8")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_what_is_in_8_bits_is_neither_rounded_nor_pruned_again(
    classifier: Bundle, tmp_path: Path
) -> None:
    again = load(artifact(classifier, tmp_path / "int8"))
    with pytest.raises(RunError, match="in 8 bits already"):
        quantize(again, CASES["classify"].records(9), ANY)
    with pytest.raises(RunError, match="in 8 bits already"):
        prune(again, PruningPlan(ffn=0.5))


def test_limits_and_models_that_make_no_sense(
    classifier: Bundle, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="--min-agreement 101: must be") as error:
        GateLimits(min_agreement=101)
    assert error.value.hint == "The default is 98.5."
    monkeypatch.setattr(kernels, "SMALLEST", 10**9)
    with pytest.raises(RunError, match="so small"):
        quantize(classifier, CASES["classify"].records(9), ANY)
