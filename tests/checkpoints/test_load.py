"""Loading: the same numbers as transformers, a full account, and a clear no to what is damaged."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaModel,
)

from pretune.checkpoints.config import read_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError, Note
from pretune.models.bert import BertConfig, BertModel
from pretune.models.families import FAMILIES

SEQUENCES = [[2, 5, 9, 33, 3], [2, 3], [2, *range(10, 50), 3], [2, 7, 7, 3]]
SEGMENTS = [[0, 0, 0, 1, 1], [0, 0], [0] * 20 + [1] * 22, [0, 0, 1, 1]]
WORDS = "embeddings.word_embeddings.weight"
QUERY, KEY = (f"encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key"))


def theirs(model, output: str) -> torch.Tensor:
    """Each sequence by itself, so that padding has no part in it."""
    model = model.eval()
    with torch.no_grad():
        outputs = [
            model(torch.tensor([ids]), token_type_ids=torch.tensor([segments]))[output][0]
            for ids, segments in zip(SEQUENCES, SEGMENTS, strict=True)
        ]
    return torch.cat(outputs) if output == "last_hidden_state" else torch.stack(outputs)


def ours(model, output: str | None = None) -> torch.Tensor:
    with torch.no_grad():
        result = model(PackedBatch.of(SEQUENCES, SEGMENTS))
    return result if output is None else getattr(result, output)


@pytest.fixture(scope="module")
def classifier_folder(tiny_folder, tmp_path_factory) -> Path:
    """The tiny model with a head of three labels: its backbone's names have the prefix `bert.`."""
    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertForSequenceClassification.from_pretrained(tiny_folder, num_labels=3)
        torch.nn.init.normal_(model.classifier.bias)
        torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    return folder


def as_pickle(folder: Path) -> None:
    """The same weights as `pytorch_model.bin`."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def copy_without(source: Path, folder: Path, name: str) -> Path:
    """A copy of a model that has lost a tensor."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    return folder


class TestParity:
    @pytest.mark.parametrize("output", ["last_hidden_state", "pooler_output"])
    @pytest.mark.parametrize("name", ["tiny_folder", "classifier_folder", "sharded_folder"])
    def test_backbone(self, request, load, name, output):
        folder = request.getfixturevalue(name)
        expected = theirs(AutoModel.from_pretrained(folder), output)
        torch.testing.assert_close(ours(load(folder)[0], output), expected, atol=1e-5, rtol=1e-5)

    def test_classifier(self, load, classifier_folder):
        model = AutoModelForSequenceClassification.from_pretrained(classifier_folder)
        logits = ours(load(classifier_folder, labels=3)[0])
        torch.testing.assert_close(logits, theirs(model, "logits"), atol=1e-5, rtol=1e-5)

    def test_minilm(self, load, minilm):
        expected = theirs(AutoModel.from_pretrained(minilm), "last_hidden_state")
        found = ours(load(minilm)[0], "last_hidden_state")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_backbone_under_a_fresh_head(self, load, tiny_folder):
        model, _ = load(tiny_folder, labels=3)
        expected = theirs(AutoModel.from_pretrained(tiny_folder), "last_hidden_state")
        found = ours(model.backbone, "last_hidden_state")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_names_of_googles_first_releases(self, load, tiny_folder, changed):
        def rename(tensors):
            return {
                name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                    "LayerNorm.bias", "LayerNorm.beta"
                ): tensor
                for name, tensor in tensors.items()
            }

        found = ours(load(changed(rename))[0], "last_hidden_state")
        assert torch.equal(found, ours(load(tiny_folder)[0], "last_hidden_state"))


class TestTwoTensorsOfOneName:
    """With and without the prefix, or by an older name: one may be used only where both agree."""

    @staticmethod
    def prefixed(tensors, add: float):
        return {**tensors, f"bert.{WORDS}": tensors[WORDS] + add}

    @staticmethod
    def renamed(tensors, add: float):
        name = "embeddings.LayerNorm."
        return {**tensors, name + "gamma": tensors[name + "weight"] + add}

    @pytest.mark.parametrize("double", [prefixed, renamed])
    @pytest.mark.parametrize("pickle", [False, True])
    def test_that_differ(self, load, changed, double, pickle):
        folder = changed(lambda tensors: double(tensors, 1.0))
        if pickle:
            as_pickle(folder)
        with pytest.raises(CheckpointError, match="names of one tensor, but have different values"):
            load(folder, allow_pickle=pickle)

    @pytest.mark.parametrize("double", [prefixed, renamed])
    @pytest.mark.parametrize("pickle", [False, True])
    def test_that_agree(self, load, changed, double, pickle, tiny_folder):
        folder = changed(lambda tensors: double(tensors, 0.0))
        if pickle:
            as_pickle(folder)
        found, report = load(folder, allow_pickle=pickle)
        assert (report.missing, report.unexpected) == ((), ())
        expected = load(tiny_folder)[0].state_dict()
        assert all(torch.equal(tensor, expected[k]) for k, tensor in found.state_dict().items())

    def test_in_two_shards(self, load, changed):
        folder = changed(lambda tensors: None)
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        save_file({WORDS: tensors[WORDS] + 1}, folder / "b.safetensors")
        index = {"weight_map": {QUERY: "a.safetensors", WORDS: "b.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(
            CheckpointError, match=f"'{WORDS}' and '{WORDS}' are names of one tensor"
        ):
            load(folder)


class TestConversion:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_to_float32(self, load, changed, dtype):
        model, _ = load(changed(lambda tensors: {k: v.to(dtype) for k, v in tensors.items()}))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_keeps_the_values(self, load, changed, tiny_folder):
        model, _ = load(changed(lambda tensors: {k: v.half() for k, v in tensors.items()}))
        expected = load_file(tiny_folder / "model.safetensors")[WORDS].half().float()
        assert torch.equal(model.embeddings.tokens.weight, expected)

    def test_is_counted(self, load, changed):
        def halve(tensors):
            tensors[QUERY] = tensors[QUERY].half()
            tensors[WORDS] = tensors[WORDS].half()

        assert load(changed(halve))[1].converted == 2

    def test_is_not_counted_where_there_is_none(self, load, tiny_folder):
        assert load(tiny_folder)[1].converted == 0

    def test_of_whole_numbers_is_refused(self, load, changed):
        def quantise(tensors):
            tensors[QUERY] = tensors[QUERY].to(torch.int8)

        with pytest.raises(CheckpointError, match=rf"'{QUERY}' holds I8, not float32"):
            load(changed(quantise))


class TestReport:
    def test_of_a_perfect_fit(self, load, tiny_folder):
        _, report = load(tiny_folder)
        count = len(load_file(tiny_folder / "model.safetensors"))
        assert (report.loaded, report.missing, report.unexpected) == (count, (), ())

    def test_names_the_source(self, load, tiny_folder):
        assert load(tiny_folder)[1].source == str(tiny_folder)

    def test_missing_head(self, load, tiny_folder):
        assert load(tiny_folder, labels=3)[1].missing == ("classifier.weight", "classifier.bias")

    def test_missing_pooler(self, load, changed):
        folder = changed(lambda t: {k: v for k, v in t.items() if not k.startswith("pooler")})
        assert load(folder)[1].missing == ("pooler.weight", "pooler.bias")

    def test_missing_pooler_under_a_fresh_head(self, load, changed):
        # Under a fresh head the pooler of the file is used, and a file without one gets it anew.
        folder = changed(lambda t: {k: v for k, v in t.items() if not k.startswith("pooler")})
        missing = load(folder, labels=3)[1].missing
        assert {"backbone.pooler.weight", "classifier.weight"} <= set(missing)

    @pytest.mark.parametrize("lost", ["pooler.dense.weight", "pooler.dense.bias"])
    def test_missing_pooler_under_a_trained_head(self, load, classifier_folder, tmp_path, lost):
        folder = copy_without(classifier_folder, tmp_path / "copy", f"bert.{lost}")
        with pytest.raises(CheckpointError, match=f"weights lack 1 tensors .*: bert.{lost}\n"):
            load(folder, labels=3)

    def test_unexpected_head(self, load, classifier_folder):
        assert load(classifier_folder)[1].unexpected == ("classifier.bias", "classifier.weight")

    @pytest.mark.parametrize("labels", [0, 3])
    def test_unexpected_names_are_those_of_the_file(self, load, changed, labels):
        def add(tensors):
            tensors["extra.LayerNorm.gamma"] = torch.zeros(1)

        _, report = load(changed(add), labels=labels)
        assert report.unexpected == ("extra.LayerNorm.gamma",)

    @pytest.mark.parametrize("labels", [0, 3])
    def test_position_ids_are_nothing_unexpected(self, load, changed, labels):
        def add(tensors):
            tensors["embeddings.position_ids"] = torch.arange(64)[None]

        assert load(changed(add), labels=labels)[1].unexpected == ()

    def test_fresh_head_is_missing_though_the_file_has_one(self, load, classifier_folder):
        names = frozenset({"classifier.weight", "classifier.bias"})
        _, report = load(classifier_folder, labels=3, fresh=names)
        assert set(report.missing) == names

    def test_a_head_that_is_left_out_is_worth_no_note(self, load, classifier_folder):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Note)
            load(classifier_folder)  # its head is known

    def test_in_words(self, load, classifier_folder):
        text = str(load(classifier_folder)[1])
        assert text.startswith(f"loaded 39 tensors from {classifier_folder}")
        assert text.endswith("in the file, not used: classifier.bias, classifier.weight")

    def test_long_lists_are_cut(self, load, changed):
        def add(tensors):
            tensors.update({f"extra{i}.weight": torch.zeros(1) for i in range(9)})

        with pytest.warns(Note, match="in no bert model.*: extra0.weight, .* and 6 more") as caught:
            _, report = load(changed(add))
        assert len(caught) == 1
        assert "extra" not in str(report)


class TestFresh:
    def test_head_may_have_another_number_of_labels(self, load, classifier_folder):
        names = frozenset({"classifier.weight", "classifier.bias"})
        model, _ = load(classifier_folder, labels=5, fresh=names)
        assert ours(model).shape == (len(SEQUENCES), 5)

    def test_weights_are_those_of_a_new_bert(self, load, tiny_folder):
        model, _ = load(tiny_folder, labels=50)
        assert model.classifier.bias.eq(0).all()
        assert 0.015 < model.classifier.weight.std() < 0.025  # initializer_range is 0.02

    def test_half_a_part_keeps_the_half_that_the_file_has(self, load, changed, tiny_folder):
        def drop(tensors):
            del tensors["pooler.dense.bias"]

        model, report = load(changed(drop))
        assert report.missing == ("pooler.bias",)
        expected = load_file(tiny_folder / "model.safetensors")["pooler.dense.weight"]
        assert torch.equal(model.pooler.weight, expected)

    def test_nothing_stays_on_the_meta_device(self, load, tiny_folder):
        model, _ = load(tiny_folder, labels=3)
        tensors = [*model.parameters(), *model.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"cpu"}

    def test_everything_can_be_trained(self, load, tiny_folder):
        model, _ = load(tiny_folder, labels=3)
        assert all(parameter.requires_grad for parameter in model.parameters())

    @pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which files are mapped")
    def test_file_is_let_go(self, load, changed):
        # A window on a file that is then cut short (copied over, say) kills the process: SIGBUS.
        folder = changed(lambda tensors: None)
        _model, _ = load(folder)
        assert str(folder) not in Path("/proc/self/maps").read_text()

    def test_weights_are_not_a_window_on_the_file(self, load, changed):
        folder = changed(lambda tensors: None)
        model, _ = load(folder)
        before = (folder / "model.safetensors").read_bytes()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert (folder / "model.safetensors").read_bytes() == before


def test_what_the_described_model_has_no_place_for_is_named(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 9, "intermediate_size": 8, "num_key_value_heads": 1}
    config = LlamaConfig(**sizes, attention_bias=True)
    LlamaModel(config).save_pretrained(tmp_path)
    entries = {**json.loads((tmp_path / "config.json").read_text()), "attention_bias": False}
    own = FAMILIES["llama"]
    with pytest.warns(Note, match="not in the model that config.json describes.*k_proj.bias"):
        load_into(
            lambda: own.build(own.backbone.config_class.from_dict(entries)),
            *(open_weights(tmp_path), tmp_path, own, "backbone"),
        )


class TestSinusoidal:
    @pytest.fixture
    def folder(self, changed) -> Path:
        def drop(tensors):
            del tensors["embeddings.position_embeddings.weight"]

        folder = changed(drop)
        config = json.loads((folder / "config.json").read_text())
        config["position_embedding_type"] = "sinusoidal"
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def test_table_is_there_after_loading(self, load, folder):
        model, report = load(folder)
        expected = BertModel(BertConfig.from_dict(read_config(folder)))
        found = dict(model.named_buffers())
        assert found
        for name, buffer in expected.named_buffers():
            assert torch.equal(found[name], buffer)
        assert report.missing == ()

    def test_with_a_table_of_positions_in_the_file_it_is_refused(self, load, folder, tiny_folder):
        """Transformers 5 does not read the entry, and would add the table."""
        shutil.copy(tiny_folder / "model.safetensors", folder)
        with pytest.raises(CheckpointError, match="position_embedding_type") as caught:
            load(folder)
        assert "set position_embedding_type to absolute" in caught.value.hint

    def test_outputs_are_finite(self, load, folder):
        assert ours(load(folder)[0], "last_hidden_state").isfinite().all()
