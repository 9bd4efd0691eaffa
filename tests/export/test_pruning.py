from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from pretune.bundle.bundle import Bundle
from pretune.errors import CheckpointError, Note, RunError
from pretune.export.pruning import PruningPlan, best_neurons, kept_layers, least_heads, prune
from tests.tasks.every_task import CASES


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ("top:2", [0, 1, 2]),
        ("every-other", [0, 2, 4]),
        ("0,2,4", [0, 2, 4]),
        ("4, 1,1", [1, 4]),
    ],
)
def test_layers_by_name(chosen: str, kept: list[int]) -> None:
    assert kept_layers(chosen, 5) == kept


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("top:5", "no layer would be left"),
        ("top:9", "no layer would be left"),
        ("top:0", "keeps all 5"),
        ("0,1,2,3,4", "keeps all 5"),
        ("0,5", "has the layers 0 to 4"),
        ("bottom:2", "has the layers 0 to 4"),
        ("top:x", "has the layers 0 to 4"),
        ("-1", "has the layers 0 to 4"),
        ("", "has the layers 0 to 4"),
    ],
)
def test_layers_that_make_no_sense(chosen: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        kept_layers(chosen, 5)


def test_the_least_heads_of_all_layers_go_and_each_layer_keeps_its_best() -> None:
    scores = [torch.tensor([0.1, 0.2, 0.05]), torch.tensor([0.9, 0.8, 0.3])]
    assert least_heads(scores, 0.5) == {0: [2, 0], 1: [2]}
    assert least_heads(scores, 4 / 6) == {0: [2, 0], 1: [2, 1]}
    with pytest.raises(RunError, match=r"5 of 6 heads.*at least one"):
        least_heads(scores, 0.8)
    with pytest.raises(RunError, match="6 of 6 heads"):
        least_heads(scores, 1.0)
    with pytest.raises(RunError, match=r"--heads 0\.01: of 6 that is none") as error:
        least_heads(scores, 0.01)
    assert error.value.hint == "Leave it out, or remove one at least: --heads 0.17."
    assert least_heads(scores, 0.17) == {0: [2]}


def test_the_best_neurons_stay_in_their_order() -> None:
    scores = [torch.tensor([0.1, 0.4, 0.2, 0.3]), torch.tensor([4.0, 3.0, 2.0, 1.0])]
    assert [own.tolist() for own in best_neurons(scores, 0.5)] == [[1, 3], [0, 1]]
    with pytest.raises(RunError, match=r"--ffn 0\.1: of 4 that is none"):
        best_neurons(scores, 0.1)
    with pytest.raises(RunError, match="no neuron would be left of 4"):
        best_neurons(scores, 1.0)


def test_plans_that_make_no_sense() -> None:
    with pytest.raises(RunError, match="nothing to remove"):
        PruningPlan(heads=0.0)
    with pytest.raises(RunError, match=r"--ffn 1\.5: a share is from 0 to 1"):
        PruningPlan(ffn=1.5)
    with pytest.raises(RunError, match="--heads nan"):
        PruningPlan(heads=float("nan"))


@pytest.fixture
def classifier(tiny_folder: Path, tmp_path: Path) -> Bundle:
    return CASES["classify"].bundle(tiny_folder, tmp_path)


def test_what_does_nothing_goes_first_and_costs_nothing(classifier: Bundle) -> None:
    records = CASES["classify"].records(12)
    for layer in classifier.backbone.layers:
        layer.attention.output.weight.data[:, 8:24] = 0  # the heads 1 and 2 of 4
        layer.feed_forward.down.weight.data[:, ::2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = prune(classifier, PruningPlan(heads=0.5, ffn=0.5), records, device="cpu")
    assert classifier.backbone.config.removed_heads == {0: [1, 2], 1: [1, 2]}
    assert (result.before.heads, result.after.heads) == (8, 4)
    assert (result.before.neurons, result.after.neurons) == (64, 32)
    assert result.after.metrics == pytest.approx(result.before.metrics, abs=1e-5)
    assert (result.measured_by, result.best_by) == ("loss", "accuracy")
    # 2 layers: half of 3 x 32 x 32 + 96 and 32 x 32, and of 2 x 32 x 64 + 64.
    gone = 2 * (1536 + 48 + 512 + 2048 + 32)
    assert result.before.parameters - result.after.parameters == gone
    # Each removed weight of a matrix is 2 FLOPs, and each head 4 x 128 x 8.
    assert result.before.flops - result.after.flops == 4 * (1536 + 512 + 2048) + 4 * 4 * 128 * 8


def test_without_data_it_is_said_what_was_looked_at(classifier: Bundle) -> None:
    with pytest.warns(Note, match="norms of their weights, as there are no labelled data"):
        result = prune(classifier, PruningPlan(layers="top:1", heads=0.5))
    assert (result.measured_by, result.best_by, result.after.metrics) == ("weights", None, {})
    assert (result.after.layers, result.after.heads) == (1, 2)


def test_a_translator_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES["translate"].bundle(tiny_folder, tmp_path)
    with pytest.raises(CheckpointError, match="cannot be pruned"):
        prune(bundle, PruningPlan(ffn=0.5))
