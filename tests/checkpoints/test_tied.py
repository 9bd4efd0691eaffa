"""One tensor with two names: the table of the vocabulary is the output layer, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from pretune.checkpoints.config import read_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.families import FAMILIES

IDS = [5, 9, 33, 11, 3]
BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"intermediate_size": 40, "vocab_size": 53, "max_position_embeddings": 20}
SIZES = {
    "bert": BERT,
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 53},
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 20, "vocab_size": 53},
}
#: The class, our name of its head, the table, and the names that say the same again.
BERT_AGAIN = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
CASES = {
    "BertForMaskedLM": ("bert", "masked_lm", BERT_AGAIN),
    "BertForPreTraining": ("bert", "pretraining", BERT_AGAIN),
    "DistilBertForMaskedLM": (
        "distilbert",
        "masked_lm",
        {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    ),
    "GPT2LMHeadModel": ("gpt2", "causal_lm", {"lm_head.weight": "transformer.wte.weight"}),
}
PAIRS = [(name, *pair) for name, case in CASES.items() for pair in case[2].items()]


def theirs(architecture: str, **entries: Any) -> nn.Module:
    """Transformers' model, all of its weights random, biases too."""
    family = CASES[architecture][0]
    config = transformers.AutoConfig.for_model(family, **SIZES[family], **entries)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = getattr(transformers, architecture)(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def their_logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output = model(torch.tensor([IDS]))
    return (output.logits if hasattr(output, "logits") else output.prediction_logits)[0]


def ours(folder: Path, architecture: str, head: str | None = None, **options: Any) -> nn.Module:
    """Our model of a folder; nothing of it may be missing or left over."""
    family = FAMILIES[CASES[architecture][0]]
    config = family.backbone.config_class.from_dict(read_config(folder))
    head = head or CASES[architecture][1]

    weights = open_weights(folder, **options)
    model, report = load_into(lambda: family.build(config, head, 3), weights, folder, family, head)
    if head == CASES[architecture][1]:
        assert (report.missing, report.unexpected) == ((), ())
    return model.eval()


def our_logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output = model(PackedBatch.of([IDS]))
    return output if isinstance(output, torch.Tensor) else output[0]


def change(folder: Path, second: str, first: str, how: str) -> None:
    """The second name with the first, instead of it, or beside it with other values."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[second] = tensors[first].clone()
    if how == "instead":
        del tensors[first]
    elif how == "other":
        tensors[second][-1] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", CASES)
def test_untied_model_is_refused(architecture: str, tmp_path: Path) -> None:
    theirs(architecture, tie_word_embeddings=False).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"other values than .*: an output layer of its own"):
        ours(tmp_path, architecture)


@pytest.mark.parametrize(("architecture", "second", "first"), PAIRS)
def test_any_other_value_is_refused(
    architecture: str, second: str, first: str, tmp_path: Path
) -> None:
    theirs(architecture).save_pretrained(tmp_path)
    change(tmp_path, second, first, "other")
    with pytest.raises(CheckpointError, match=f"'{second}' has other values than '{first}'"):
        ours(tmp_path, architecture)


def test_pickle_of_an_untied_model_is_refused(tmp_path: Path) -> None:
    model = theirs("GPT2LMHeadModel", tie_word_embeddings=False)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' has other values"):
        ours(tmp_path, "GPT2LMHeadModel", allow_pickle=True)


def test_pickle_of_a_tied_model_opens(tmp_path: Path) -> None:
    model = theirs("GPT2LMHeadModel")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = our_logits(ours(tmp_path, "GPT2LMHeadModel", allow_pickle=True))
    torch.testing.assert_close(found, their_logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["backbone", "sequence_classification"])
def test_rest_of_an_untied_model_can_be_used(head: str, tmp_path: Path) -> None:
    model = theirs("GPT2LMHeadModel", tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    found = ours(tmp_path, "GPT2LMHeadModel", head)
    backbone = found if head == "backbone" else found.get_submodule("backbone")
    table = backbone.get_parameter("embeddings.tokens.weight")
    assert torch.equal(table, model.get_parameter("transformer.wte.weight"))


@pytest.mark.parametrize(("architecture", "second", "first"), PAIRS)
@pytest.mark.parametrize("how", ["instead", "with"])
def test_second_name_is_as_good(
    architecture: str, second: str, first: str, how: str, tmp_path: Path
) -> None:
    theirs(architecture).save_pretrained(tmp_path)
    change(tmp_path, second, first, how)
    # What transformers makes of the same file.
    expected = getattr(transformers, architecture).from_pretrained(tmp_path).eval()
    found = our_logits(ours(tmp_path, architecture))
    torch.testing.assert_close(found, their_logits(expected), atol=1e-5, rtol=1e-5)


def test_config_that_says_untied_of_equal_tables_opens(tmp_path: Path) -> None:
    model = theirs("GPT2LMHeadModel", tie_word_embeddings=False)
    model.lm_head.weight.data = model.transformer.wte.weight.detach().clone()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    found = our_logits(ours(tmp_path, "GPT2LMHeadModel"))
    torch.testing.assert_close(found, their_logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["causal_lm", "backbone", "sequence_classification"])
def test_what_safetensors_keeps_of_two_names(head: str, tmp_path: Path) -> None:
    model = theirs("GPT2LMHeadModel")
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert "transformer.wte.weight" not in load_file(tmp_path / "model.safetensors")
    found = ours(tmp_path, "GPT2LMHeadModel", head)
    backbone = found if head == "backbone" else found.get_submodule("backbone")
    table = backbone.get_parameter("embeddings.tokens.weight")
    assert torch.equal(table, model.get_parameter("transformer.wte.weight"))


@pytest.mark.parametrize("with_output", [True, False])
def test_without_the_prefix_the_output_layer_is_itself(with_output: bool, tmp_path: Path) -> None:
    model = theirs("GPT2LMHeadModel", tie_word_embeddings=not with_output)
    model.config.save_pretrained(tmp_path)
    tensors = {k.removeprefix("transformer."): v for k, v in model.state_dict().items()}
    if not with_output:
        del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    if with_output:
        with pytest.raises(CheckpointError, match=r"'lm_head\.weight' has other values"):
            ours(tmp_path, "GPT2LMHeadModel")
    else:
        found = our_logits(ours(tmp_path, "GPT2LMHeadModel"))
        torch.testing.assert_close(found, their_logits(model), atol=1e-5, rtol=1e-5)
