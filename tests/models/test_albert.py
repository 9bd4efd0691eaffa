"""ALBERT: one layer that runs many times, and narrow embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pretune.bundle.bundle import load, save
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.experiments.costs import count_flops
from pretune.models.albert import AlbertConfig, AlbertModel
from pretune.models.families import FAMILIES, build_head
from pretune.models.lora import add_lora, merged_state
from pretune.models.pruned import keep_layers, prune_heads
from tests.models.encoders import SIZES, saved

SMALL = AlbertConfig(**SIZES, vocab_size=20, embedding_size=6)
TEXTS = [[5, 6, 7], [8, 9]]


def test_all_layers_are_one_and_can_be_fewer() -> None:
    torch.manual_seed(0)
    model = AlbertModel(SMALL).eval()
    assert len(model.layers) == 2
    assert model.layers[0] is model.layers[1]
    with torch.no_grad():
        states = model(PackedBatch.of(TEXTS), output_hidden_states=True).hidden_states
        keep_layers(model, [1])
        assert torch.equal(model(PackedBatch.of(TEXTS)).last_hidden_state, states[1])
    assert model.config.num_hidden_layers == 1


def test_layers_that_are_one_lose_no_heads() -> None:
    with pytest.raises(CheckpointError, match="all of its layers are one"):
        prune_heads(AlbertModel(SMALL), {0: [0]})


def test_each_run_of_the_layer_costs() -> None:
    once = AlbertModel(SMALL.resized(num_hidden_layers=1))
    costs = [count_flops(model, 8).matrix_parameters for model in (once, AlbertModel(SMALL))]
    assert costs[1] - costs[0] == 4 * 16 * 16 + 2 * 16 * 24


def test_an_adapter_is_one_and_is_merged_into_the_one_layer() -> None:
    torch.manual_seed(0)
    model = build_head(AlbertModel(SMALL), "sequence_classification", 2)
    names = set(model.state_dict())
    add_lora(model, 2, 4, ["attention.qkv"])
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    state = merged_state(model)
    assert set(state) == names
    one, two = (state[f"backbone.layers.{i}.attention.qkv.weight"] for i in range(2))
    assert torch.equal(one, two)


def test_what_is_saved_has_the_layer_once(tmp_path: Path) -> None:
    theirs, _ = saved(tmp_path, "AlbertForPreTraining", embedding_size=6)
    bundle = load(tmp_path)
    assert bundle.task is not None
    assert bundle.task.options.next == "sop"
    (tmp_path / "ours").mkdir()
    save(bundle, tmp_path / "ours")
    tensors = theirs.state_dict()
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            assert torch.equal(file.get_tensor(name), tensors[name])


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_groups": 2},
        {"inner_group_num": 2},
        {"position_embedding_type": "relative_key"},
        {"embedding_size": 0},
        {"classifier_dropout_prob": None, "embedding_size": "x"},
    ],
)
def test_entries_that_are_refused_by_name(entries: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=[*entries][-1]):
        AlbertConfig.from_dict({**SIZES, **entries})


def test_published_sizes() -> None:
    family = FAMILIES["albert"]
    with torch.device("meta"):
        model = family.build(AlbertConfig.from_dict(family.presets["albert-base"]))
    assert sum(p.numel() for p in model.parameters()) == 11_683_584
