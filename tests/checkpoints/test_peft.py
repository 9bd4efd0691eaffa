"""LoRA adapters of every family and head, in peft and here; refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from pretune.checkpoints.names import name_table
from pretune.checkpoints.peft import CONFIG, WEIGHTS, PublishedAdapter, put_beside, save_adapter
from pretune.errors import CheckpointError, RunError
from pretune.models.families import FAMILIES
from pretune.models.lora import LoraLinear, adapters, add_lora
from tests.parity.adapters import ADAPTED, base_of, compare, drawn, reopened
from tests.parity.families import difference, our_logits, ours_of, their_logits

IDS = [[1, 4, 8, 2, 9], [5], [2, 7]]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), ADAPTED)
def test_every_family_and_head_both_ways(family: str, head: str) -> None:
    found = compare(family, head)
    assert found.reading < 2e-5
    assert found.writing < 2e-5


def test_a_classifier_both_ways() -> None:
    found = compare("bert", "sequence_classification")
    assert found.reading < 1e-5
    assert found.writing < 1e-5


@pytest.mark.slow
def test_part_of_a_matrix_may_be_adapted(tmp_path: Path) -> None:
    """As people train with peft: query and value, of three matrices that are one here."""
    torch.manual_seed(0)
    base_of("bert", "token_classification", tmp_path / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["query", "value"], task_type="TOKEN_CLS"
    )
    theirs = peft.get_peft_model(
        reopened("bert", "token_classification", tmp_path / "base"), config
    )
    drawn(theirs)
    theirs.save_pretrained(tmp_path / "a")
    ours = ours_of(tmp_path / "base", "bert", "token_classification")
    family = FAMILIES["bert"]
    put_beside(ours, PublishedAdapter.read(tmp_path / "a"), family, "token_classification")
    assert [len(part.blocks) for part in adapters(ours).values()] == [2, 2, 2]
    with torch.no_grad():
        apart = our_logits(ours, "token_classification", IDS)
        assert difference(apart, their_logits(theirs, "token_classification", IDS)) < 1e-5
        # The same by a sum of matrices, and by two products.
        for part in adapters(ours).values():
            part.apart = True
        assert difference(our_logits(ours, "token_classification", IDS), apart) < 1e-5


@pytest.mark.slow
def test_ends_of_names_pick_what_was_adapted_and_no_more(tmp_path: Path) -> None:
    """`output.dense` would be both the attention's and the feed-forward block's."""
    base_of("bert", "masked_lm", tmp_path / "base")
    ours = ours_of(tmp_path / "base", "bert", "masked_lm")
    add_lora(ours, 2, 4.0, ["feed_forward.down"])
    save_adapter(ours, tmp_path / "a", FAMILIES["bert"], "masked_lm", "")
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["target_modules"] == [f"{i}.output.dense" for i in range(3)]
    opened = peft.PeftModel.from_pretrained(
        reopened("bert", "masked_lm", tmp_path / "base"), tmp_path / "a"
    )
    names = {
        name.partition(".lora_A")[0] for name, _ in opened.named_parameters() if "lora" in name
    }
    assert len({name for name in names if "lora_B" not in name}) == 3


@pytest.mark.slow
def test_a_fresh_pooler_goes_with_the_adapter(tmp_path: Path) -> None:
    base_of("bert", "sequence_classification", tmp_path / "base")
    ours = ours_of(tmp_path / "base", "bert", "sequence_classification")
    fresh = ["backbone.pooler.weight", "backbone.pooler.bias", "classifier.weight"]
    add_lora(ours, 2, 4.0, ["attention.qkv"], fresh=fresh)
    learns = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert {name for name in learns if ".lora_" not in name} == {*fresh, "classifier.bias"}
    drawn(ours)
    save_adapter(ours, tmp_path / "a", FAMILIES["bert"], "sequence_classification", "")
    theirs = peft.PeftModel.from_pretrained(
        reopened("bert", "sequence_classification", tmp_path / "base"), tmp_path / "a"
    ).eval()
    with torch.no_grad():
        mine = our_logits(ours, "sequence_classification", IDS)
        assert difference(their_logits(theirs, "sequence_classification", IDS), mine) < 1e-5


def test_a_fresh_output_layer_of_a_language_model_is_refused(tmp_path: Path) -> None:
    base_of("bert", "masked_lm", tmp_path)
    ours = ours_of(tmp_path, "bert", "masked_lm")
    with pytest.raises(RunError, match="output layer of the language model is new"):
        add_lora(ours, 2, 4.0, ["attention.qkv"], fresh=["transform.weight"])


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and an adapter of a classifier. Not to be changed."""
    folder = tmp_path_factory.mktemp("adapted")
    base_of("bert", "sequence_classification", folder / "base")
    ours = ours_of(folder / "base", "bert", "sequence_classification")
    add_lora(ours, 2, 4.0, ["attention.qkv"])
    save_adapter(ours, folder / "a", FAMILIES["bert"], "sequence_classification", "")
    return folder


def changed(adapted: Path, folder: Path, **entries: Any) -> Path:
    """A copy of the adapter with other entries."""
    shutil.copytree(adapted / "a", folder)
    config = json.loads((folder / CONFIG).read_text()) | entries
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"peft_type": "IA3"}, "peft's IA3, no LoRA"),
        ({"use_rslora": True}, "rank-stabilised"),
        ({"use_dora": True}, "DoRA"),
        ({"rank_pattern": {"query": 4}}, "several ranks"),
        ({"alpha_pattern": {"query": 4}}, "several values of alpha"),
        ({"bias": "all"}, "trained biases"),
        ({"init_lora_weights": "pissa"}, "changed its base"),
        ({"trainable_token_indices": [3]}, "trained rows of the embeddings"),
        ({"use_new_thing": True}, "not known here (use_new_thing)"),
        ({"r": 0}, "r and lora_alpha must be numbers"),
        ({"lora_alpha": None}, "r and lora_alpha must be numbers"),
    ],
)
def test_other_kinds_are_refused_by_name(
    adapted: Path, tmp_path: Path, entries: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        PublishedAdapter.read(changed(adapted, tmp_path / "b", **entries))
    assert named in caught.value.message


def test_files_that_are_not_there_or_broken(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter here"):
        PublishedAdapter.read(adapted / "base")
    folder = changed(adapted, tmp_path / "b")
    (folder / WEIGHTS).write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        PublishedAdapter.read(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin, a pickle"):
        PublishedAdapter.read(folder)


_LAYER = "bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("bert.encoder.layer.9.attention.self.query.lora_A.weight", (2, 24), "has no place"),
        ("cls.predictions.bias", (53,), "has no place"),
        (f"{_LAYER}.lora_magnitude_vector", (24,), "has no place"),
        (f"{_LAYER}.lora_B.weight", (24, 3), r"is \[24, 3\], but the model needs \[24, 2\]"),
        ("classifier.weight", (4, 24), r"is \[4, 24\], but the model needs \[5, 24\]"),
    ],
)
def test_tensors_without_a_place(
    adapted: Path, tmp_path: Path, name: str, shape: tuple[int, ...], named: str
) -> None:
    folder = changed(adapted, tmp_path / "b")
    tensors = load_file(folder / WEIGHTS)
    tensors[f"base_model.model.{name}"] = torch.zeros(shape)
    save_file(tensors, folder / WEIGHTS)
    ours = ours_of(adapted / "base", "bert", "sequence_classification")
    with pytest.raises(CheckpointError, match=named):
        put_beside(ours, PublishedAdapter.read(folder), FAMILIES["bert"], "sequence_classification")


def test_fused_matrices_have_an_adapter_for_each_published_one(tmp_path: Path) -> None:
    """Marian's keys and values of the source share a matrix, too."""
    base_of("marian", "translation", tmp_path)
    ours = ours_of(tmp_path, "marian", "translation")
    with pytest.raises(RunError, match=r"have no 'cross\.other'"):
        add_lora(ours, 2, 4.0, ["cross.other"])
    add_lora(ours, 2, 4.0, ["cross.kv"])
    parts = adapters(ours)
    assert len(parts) == 3  # layers of the decoder alone
    assert all(isinstance(p, LoraLinear) and len(p.blocks) == 2 for p in parts.values())
    table = name_table(FAMILIES["marian"], "translation", ours.backbone.stacks)
    assert all(len(table[f"{name}.weight"].parts) == 2 for name in parts)
