"""What we save, transformers opens, with the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from pretune.bundle import bundle
from pretune.checkpoints.save import save_model
from pretune.data.batch import PackedBatch
from pretune.models.families import FAMILIES

BERT = FAMILIES["bert"]
IDS = [2, 5, 9, 33, 11, 3]
LABELS = {"id2label": {"0": "bad", "1": "good", "2": "so-so"}}


@pytest.fixture
def classifier(load, tiny_folder):
    model, _ = load(tiny_folder, labels=3)
    torch.nn.init.normal_(model.classifier.bias)
    return model


@pytest.fixture
def saved(classifier, tmp_path) -> Path:
    save_model(classifier, tmp_path, BERT, "sequence_classification", LABELS)
    return tmp_path


def test_transformers_gives_the_same_logits(classifier, saved):
    theirs = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    with torch.no_grad():
        expected = classifier(PackedBatch.of([IDS], [[0] * len(IDS)]))
        found = theirs(torch.tensor([IDS])).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_transformers_misses_nothing_and_finds_nothing_odd(saved):
    _, info = AutoModelForSequenceClassification.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_transformers_knows_the_labels(saved):
    theirs = AutoModelForSequenceClassification.from_pretrained(saved)
    assert theirs.config.id2label == {0: "bad", 1: "good", 2: "so-so"}


def test_backbone_opens_in_transformers(load, tiny_folder, tmp_path):
    model, _ = load(tiny_folder)
    save_model(model, tmp_path, BERT, "backbone")
    with torch.no_grad():
        expected = model(PackedBatch.of([IDS], [[0] * len(IDS)])).last_hidden_state
        found = AutoModel.from_pretrained(tmp_path).eval()(torch.tensor([IDS])).last_hidden_state[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_tensors_of_a_backbone_are_those_it_was_loaded_from(load, tiny_folder, tmp_path):
    save_model(load(tiny_folder)[0], tmp_path, BERT, "backbone")
    before = load_file(tiny_folder / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loads_again_bit_by_bit(load, classifier, saved):
    again, report = load(saved, labels=3)
    assert (report.missing, report.unexpected) == ((), ())
    for name, value in classifier.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_config_keeps_the_sizes(saved, tiny_folder):
    before = json.loads((tiny_folder / "config.json").read_text())
    after = json.loads((saved / "config.json").read_text())
    names = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "hidden_act")
    assert {n: after[n] for n in names} == {n: before[n] for n in names}


@pytest.mark.parametrize(
    ("head", "architecture"),
    [("backbone", "BertModel"), ("sequence_classification", "BertForSequenceClassification")],
)
def test_architecture(classifier, tmp_path, head, architecture):
    model = classifier.backbone if head == "backbone" else classifier
    save_model(model, tmp_path, BERT, head)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [architecture]


def test_file_says_it_is_of_pytorch(saved):
    with safe_open(saved / "model.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}


class TestSinusoidalPositions:
    """transformers has no such BERT: it would open one and make up the positions."""

    @pytest.fixture
    def sinusoidal(self, tiny_folder, tmp_path) -> Path:
        """As it was saved when it still had the type `bert`."""
        folder = tmp_path / "old"
        shutil.copytree(tiny_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors["embeddings.position_embeddings.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config["position_embedding_type"] = "sinusoidal"
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_old_files_open_and_new_ones_give_the_same(self, sinusoidal, tmp_path):
        first = bundle.load(sinusoidal)
        assert (first.report.missing, first.report.unexpected) == ((), ())
        (new := tmp_path / "new").mkdir()
        bundle.save(first, new)
        second = bundle.load(new)
        assert (second.report.missing, second.report.unexpected) == ((), ())
        hidden = [
            each.model.eval()(PackedBatch.of([IDS])).last_hidden_state for each in (first, second)
        ]
        assert torch.equal(*hidden)

    def test_transformers_does_not_take_it_for_a_bert(self, sinusoidal, tmp_path):
        found = bundle.load(sinusoidal)
        assert not found.family.published
        (new := tmp_path / "new").mkdir()
        bundle.save(found, new)
        with pytest.raises(ValueError, match="bert-sinusoidal"):
            AutoModel.from_pretrained(new)

    def test_of_a_size_has_that_type_too(self):
        sizes = {"position_embedding_type": "sinusoidal", "num_hidden_layers": 1}
        assert bundle.load("bert-tiny", config=sizes).family.model_type == "bert-sinusoidal"
        assert bundle.load("bert-tiny").family.model_type == "bert"
