"""What is removed is as if it had been masked, and comes back from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretune.bundle.bundle import load, outline
from pretune.checkpoints.save import save_model
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError, RunError
from pretune.models.backbone import Backbone
from pretune.models.config import REMOVED_HEADS
from pretune.models.families import FAMILIES, build_head
from pretune.models.lora import add_lora
from pretune.models.pruned import keep_layers, keep_neurons, keep_tokens, prune_heads
from tests.conftest import SPECIAL

#: Our names of sizes and tiny ones.
SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
FAMILY_NAMES = ["bert", "distilbert", "electra", "gpt2"]
TEXTS = [[2, 7, 11, 3], [5, 30, 8, 9, 39, 3, 12]]
REMOVED = {0: [1, 3], 2: [0]}


def backbone(kind: str) -> Backbone:
    config_class = FAMILIES[kind].backbone.config_class
    names = {**config_class.names, **({"intermediate_size": "n_inner"} if kind == "gpt2" else {})}
    given = {names.get(name, name): value for name, value in SIZES.items()}
    if kind == "gpt2":
        given |= {"bos_token_id": 3, "eos_token_id": 3}
    torch.manual_seed(0)
    model = FAMILIES[kind].build(config_class(**given))
    assert isinstance(model, Backbone)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def hidden(model: Backbone) -> Tensor:
    with torch.inference_mode():
        return model(PackedBatch.of(TEXTS)).last_hidden_state


def answered(model: Backbone) -> Tensor:
    """As a classifier reads it: a few rows of the last layer."""
    batch = PackedBatch.of(TEXTS)
    which = batch.last if model.causal else batch.first
    with torch.inference_mode():
        return model(batch, select=which).last_hidden_state


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_removed_heads_are_as_masked_ones(kind: str) -> None:
    masked, removed = backbone(kind), backbone(kind)
    for layer, heads in REMOVED.items():
        for head in heads:  # of 6 columns each
            columns = slice(6 * head, 6 * head + 6)
            masked.layers[layer].attention.output.weight.data[:, columns] = 0
    prune_heads(removed, REMOVED)
    assert removed.layers[0].attention.qkv.weight.shape == (36, 24)
    torch.testing.assert_close(hidden(removed), hidden(masked), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(answered(removed), answered(masked), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_removed_neurons_are_as_masked_ones(kind: str) -> None:
    masked, removed = backbone(kind), backbone(kind)
    kept = [torch.tensor(own) for own in ([0, 5, 31], [1, 2, 3], [7, 9, 20])]
    for layer, own in zip(masked.layers, kept, strict=True):
        others = [i for i in range(32) if i not in own.tolist()]
        layer.feed_forward.down.weight.data[:, others] = 0
    keep_neurons(removed, kept)
    assert removed.config.size("intermediate_size") == 3
    assert removed.layers[1].feed_forward.up.weight.shape == (3, 24)
    torch.testing.assert_close(hidden(removed), hidden(masked), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_the_lower_layers_are_what_they_were(kind: str) -> None:
    model = backbone(kind)
    with torch.inference_mode():
        output = model(PackedBatch.of(TEXTS), output_hidden_states=True)
        expected = output.hidden_states[2]
        # After the last layer a GPT-2 also has a LayerNorm.
        if model.final_norm is not None:
            expected = model.final_norm(expected)
    keep_layers(model, [0, 1])
    torch.testing.assert_close(hidden(model), expected, atol=1e-6, rtol=1e-6)
    assert model.config.size("num_hidden_layers") == 2


def written(model: Backbone, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder, FAMILIES[model.config.model_type], "backbone")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *"abcdef"]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_transformers_and_pretune_open_what_is_saved(kind: str, tmp_path: Path) -> None:
    model = backbone(kind)
    prune_heads(model, {0: [2], 1: [0, 1, 3], 2: [0]})
    keep_layers(model, [0, 2])
    keep_neurons(model, [torch.arange(9), torch.arange(4, 13)])
    prune_heads(model, {1: [0]})  # the second of all
    assert model.config.removed_heads == {0: [2], 1: [0, 1]}
    folder = written(model, tmp_path / "small")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [theirs(torch.tensor([text])).last_hidden_state[0] for text in TEXTS]
    torch.testing.assert_close(hidden(model), torch.cat(rows), atol=1e-5, rtol=1e-5)
    # Removed again, here and where no weights are read; and written as it was read.
    again = load(folder, bare=True)
    assert [layer.attention.num_heads for layer in again.backbone.layers] == [3, 2]
    assert torch.equal(hidden(again.backbone), hidden(model))
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (model, again.model)]
    assert shapes[0] == shapes[1]
    drawn = outline(folder).model
    assert shapes[0] == {n: p.shape for n, p in drawn.named_parameters()}
    other = written(again.backbone, tmp_path / "other")
    assert [(other / n).read_bytes() for n in ("config.json", "model.safetensors")] == [
        (folder / n).read_bytes() for n in ("config.json", "model.safetensors")
    ]


def test_heads_that_are_not_zeros_are_not_thrown_away(tmp_path: Path) -> None:
    model = backbone("bert")
    prune_heads(model, {1: [2]})
    folder = written(model, tmp_path / "small")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.attention.self.value.bias"][13] = 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"config.json: {REMOVED_HEADS} says.*layer 1"):
        load(folder, bare=True)


@pytest.mark.parametrize(
    "entry", [{"3": [0]}, {"0": [4]}, {"0": [0, 1, 2, 3]}, {"0": [1, 1]}, {"0": 1}, ["0"], "x"]
)
def test_an_entry_that_makes_no_sense(entry: object, tmp_path: Path) -> None:
    folder = written(backbone("bert"), tmp_path / "small")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config[REMOVED_HEADS] = entry
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{REMOVED_HEADS} must name"):
        load(folder, bare=True)


def test_what_is_not_pruned_says_nothing_about_it(tmp_path: Path) -> None:
    folder = written(backbone("bert"), tmp_path / "whole")
    assert REMOVED_HEADS not in (folder / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", FAMILY_NAMES)
def test_tokens_that_are_kept_have_the_same_states_and_logits(kind: str) -> None:
    model, kept = backbone(kind), [0, 2, 3, 5, 7, 8, 9, 11, 12, 30, 39]
    head = {"gpt2": "causal_lm"}.get(kind, "masked_lm")
    whole = model if kind == "electra" else build_head(model, head)
    with torch.inference_mode():
        before = whole(PackedBatch.of(TEXTS))
    keep_tokens(whole, kept)
    assert model.config.size("vocab_size") == 11
    if kind == "gpt2":
        assert (model.config.bos_token_id, model.config.eos_token_id) == (2, 2)
    new = [[kept.index(token) for token in text] for text in TEXTS]
    with torch.inference_mode():
        after = whole(PackedBatch.of(new))
    if kind == "electra":
        assert torch.equal(after.last_hidden_state, before.last_hidden_state)
    else:
        torch.testing.assert_close(after, before[:, kept], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("end", [9, [9, 39]])
def test_tokens_that_the_configuration_names_have_their_new_numbers(end: object) -> None:
    """Llama 3 and Gemma have a list of tokens that end a text."""
    config_class = FAMILIES["llama"].backbone.config_class
    names = {config_class.names.get(name, name): value for name, value in SIZES.items()}
    config = config_class(**names, num_key_value_heads=4, head_dim=6, eos_token_id=end)
    model = FAMILIES["llama"].build(config)
    assert isinstance(model, Backbone)
    kept = [1, 2, 5, 9, 30, 39]
    keep_tokens(model, kept)
    assert model.config.bos_token_id == 0
    assert model.config.eos_token_id == ([3, 5] if isinstance(end, list) else 3)


def test_an_adapter_would_fit_no_published_model() -> None:
    model = build_head(backbone("gpt2"), "causal_lm")
    prune_heads(model.backbone, {0: [1]})
    with pytest.raises(RunError, match="heads were removed"):
        add_lora(model, 2, 4, ["attention.qkv"])


def test_other_models_are_refused_by_name() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    with torch.device("meta"):
        models = [
            FAMILIES["marian"].build(FAMILIES["marian"].backbone.config_class(**sizes)),
            FAMILIES["rnn"].build(FAMILIES["rnn"].backbone.config_class()),
        ]
    for model, kind in zip(models, ("marian", "rnn"), strict=True):
        assert isinstance(model, Backbone)
        with pytest.raises(CheckpointError, match=f"{kind} model cannot be pruned"):
            keep_layers(model, [0])
