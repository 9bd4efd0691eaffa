"""Google's TensorFlow releases: every value of what a real TensorFlow wrote, and nothing damaged.

`fixtures/tensorflow` was written by `make_tensorflow_fixtures.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from pretune.checkpoints.config import read_bert_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.tensorflow.google_bert import TensorFlowCheckpoint, find_tensorflow
from pretune.checkpoints.tensorflow.tensor_bundle import LARGEST_INDEX, TensorBundle
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.bert import BertConfig
from pretune.models.families import FAMILIES
from pretune.tokenizers.load import load_tokenizer
from tests.checkpoints.bundles import DATA, FIXTURES, INDEX, VALUES, entry, write

NAMES = ["tf1", "sharded", "mixed", "tf2", "tf2-old", "tf2-pretrainer"]
QUERY = "bert/encoder/layer_0/attention/self/query/kernel"
IDS = [[2, 5, 9, 13, 3], [2, 3], [2, *range(8, 17), 3]]


def expected_of(name: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / name / "expected.safetensors")


def checkpoint(folder: Path) -> TensorFlowCheckpoint:
    return TensorFlowCheckpoint(folder / "bert_model.ckpt")


def everything(folder: Path) -> dict[str, torch.Tensor]:
    weights = checkpoint(folder)
    return {name: weights.read(name) for name in weights.names}


@pytest.fixture
def copy(request, tmp_path) -> Path:
    """A folder of ours to damage."""
    name = getattr(request, "param", "tf1")
    return Path(shutil.copytree(FIXTURES / name, tmp_path / name))


@pytest.mark.parametrize("name", NAMES)
class TestValues:
    def test_are_those_that_were_written(self, name):
        found, expected = everything(FIXTURES / name), expected_of(name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == torch.float32
            assert torch.equal(found[key], tensor), key

    def test_shapes_are_known_before_reading(self, name):
        weights = checkpoint(FIXTURES / name)
        for key, tensor in expected_of(name).items():
            assert weights.shape(key) == list(tensor.shape)

    def test_conversions_are_counted(self, name):
        weights = checkpoint(FIXTURES / name)
        for key in weights.names:
            weights.read(key)
        count = len(weights.names)
        assert weights.converted == (count - (count + 3) // 4 if name == "mixed" else 0)

    def test_what_training_left_is_counted(self, name):
        slots = 2 * len(expected_of("tf1"))
        assert checkpoint(FIXTURES / name).ignored == {"tf1": slots + 1}.get(
            name, 2 if name.startswith("tf2") else 1
        )

    def test_release_is_found(self, name):
        folder = FIXTURES / name
        assert find_tensorflow(folder) == folder / "bert_model.ckpt"
        assert BertConfig.from_dict(read_bert_config(folder)).hidden_size == 8


def our_model(folder: Path, head: str, fresh: list[str]) -> nn.Module:
    config = BertConfig.from_dict(read_bert_config(folder))

    family = FAMILIES["bert"]
    build = partial(family.build, config, head)
    model, report = load_into(build, checkpoint(folder), folder, family, head)
    assert list(report.missing) == fresh
    return model.eval()


@pytest.fixture(scope="module")
def theirs() -> transformers.BertForPreTraining:
    config = transformers.BertConfig(**read_bert_config(FIXTURES / "tf1"))
    model = transformers.BertForPreTraining(config)
    lost = model.load_state_dict(expected_of("tf1"), strict=False)
    assert not lost.unexpected_keys
    assert all("decoder" in key or "position_ids" in key for key in lost.missing_keys)
    model.tie_weights()
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    return model.eval()


class TestModel:
    @pytest.fixture(autouse=True)
    def _no_gradients(self):
        with torch.no_grad():
            yield

    @pytest.fixture
    def batch(self) -> PackedBatch:
        return PackedBatch.of(IDS)

    @pytest.mark.parametrize("name", ["tf1", "sharded", "tf2", "tf2-old"])
    def test_backbone(self, theirs, batch, name):
        output = our_model(FIXTURES / name, "backbone", [])(batch)
        expected = [theirs.bert(torch.tensor([ids])) for ids in IDS]
        hidden = torch.cat([one.last_hidden_state[0] for one in expected])
        pooled = torch.cat([one.pooler_output for one in expected])
        torch.testing.assert_close(output.last_hidden_state, hidden, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.pooler_output, pooled, atol=1e-5, rtol=1e-5)

    def test_backbone_is_that_of_the_model_garden(self, batch):
        output = our_model(FIXTURES / "tf2", "backbone", [])(batch)
        said = load_file(FIXTURES / "tf2" / "outputs.safetensors")
        hidden = torch.cat([said[f"hidden.{i}"] for i in range(len(IDS))])
        pooled = torch.stack([said[f"pooled.{i}"] for i in range(len(IDS))])
        torch.testing.assert_close(output.last_hidden_state, hidden, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.pooler_output, pooled, atol=1e-5, rtol=1e-5)

    def test_masked_lm_is_that_of_the_model_garden(self, batch):
        folder = FIXTURES / "tf2-pretrainer"
        said = load_file(folder / "outputs.safetensors")
        logits = torch.cat([said[f"logits.{i}"] for i in range(len(IDS))])
        found = our_model(folder, "masked_lm", [])(batch)
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["tf1", "sharded"])
    def test_masked_lm(self, theirs, batch, name):
        expected = torch.cat([theirs(torch.tensor([i])).prediction_logits[0] for i in IDS])
        found = our_model(FIXTURES / name, "masked_lm", [])(batch)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["tf1", "sharded"])
    def test_pretraining(self, theirs, batch, name):
        both = our_model(FIXTURES / name, "pretraining", [])(batch, both=True)
        expected = [theirs(torch.tensor([ids])) for ids in IDS]
        tokens = torch.cat([one.prediction_logits[0] for one in expected])
        follows = torch.cat([one.seq_relationship_logits for one in expected])
        torch.testing.assert_close(both.predictions, tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both.seq_relationship_logits, follows, atol=1e-5, rtol=1e-5)

    def test_fresh_classifier(self, batch):
        fresh = ["classifier.weight", "classifier.bias"]
        model = our_model(FIXTURES / "tf2", "sequence_classification", fresh)
        assert model(batch).shape == (len(IDS), 2)

    def test_other_shape_is_refused(self, copy):
        config = json.loads((copy / "bert_config.json").read_text()) | {"intermediate_size": 15}
        (copy / "bert_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError) as caught:
            our_model(copy, "backbone", [])
        wanted = "bert/encoder/layer_0/intermediate/dense/kernel' is [16, 8], but config.json"
        assert caught.value.message.startswith(f"{copy / DATA}: '{wanted}")


class TestNames:
    @pytest.mark.parametrize(
        ("theirs", "ours", "shape"),
        [
            ("output_weights", "classifier.weight", [2, 3]),
            ("cls/squad/output_weights", "qa_outputs.weight", [2, 3]),
            ("bert/encoder/layer_999/output/dense/kernel", None, [3, 2]),
            ("bert/encoder/layer_0999/output/dense/kernel", "", [2, 3]),
            ("bert/encoder/layer_{i}/output/dense/kernel", "", [2, 3]),
            ("masked_lm/dense/kernel/.ATTRIBUTES/VARIABLE_VALUE", None, [3, 2]),
            ("something/else", "", [2, 3]),
        ],
    )
    def test_of_other_parts(self, tmp_path, theirs, ours, shape):
        weights = checkpoint(write(tmp_path, (theirs.encode(), entry(VALUES))))
        (name,) = weights.names
        if ours is not None:
            assert name == (ours or theirs)
        assert weights.shape(name) == list(weights.read(name).shape) == shape
        assert weights.stored(name) == theirs

    def test_two_for_one(self, tmp_path):
        kernel = "layer_with_weights-6/kernel/.ATTRIBUTES/VARIABLE_VALUE"
        twice = [(f"{root}/{kernel}".encode(), entry(VALUES)) for root in ("encoder", "model")]
        with pytest.raises(CheckpointError, match=rf"{INDEX}: .* are both bert\.pooler"):
            checkpoint(write(tmp_path, *twice))

    def test_renaming(self):
        weights = checkpoint(FIXTURES / "tf1")
        weights.rename({"cls.predictions.bias": "b"})
        assert "cls.predictions.bias" not in weights.names
        assert torch.equal(weights.read("b"), expected_of("tf1")["cls.predictions.bias"])
        assert weights.stored("b") == "cls/predictions/output_bias"

    def test_release_of_another_name(self, copy):
        for path in copy.glob("bert_model.ckpt*"):
            path.rename(path.with_name(path.name.replace("bert_model.ckpt", "model.ckpt-900")))
        assert find_tensorflow(copy) == copy / "model.ckpt-900"
        shutil.copy(copy / "model.ckpt-900.index", copy / "model.ckpt-950.index")
        with pytest.raises(CheckpointError, match=r"several .*: model\.ckpt-900, model\.ckpt-950"):
            find_tensorflow(copy)

    def test_none_is_found(self, tmp_path):
        (tmp_path / "model.safetensors.index.json").touch()
        assert find_tensorflow(tmp_path) is None

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(b"{", "not valid JSON"), (b"[]", "expected a JSON object"), (b"\xff", "not valid JSON")],
    )
    def test_broken_config(self, tmp_path, content, reason):
        (tmp_path / "bert_config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"bert_config\.json: {reason}"):
            read_bert_config(tmp_path)

    def test_missing_config(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no bert_config\.json here"):
            read_bert_config(tmp_path)

    def test_case_is_told_from_the_vocabulary(self, copy):
        tokenizer = load_tokenizer(copy)
        assert tokenizer.settings["do_lower_case"] is False
        words = (copy / "vocab.txt").read_text().split("\n")
        (found,) = tokenizer.encode(["The Films the film"])
        assert [words[i] for i in found.ids[1:-1]] == ["The", "Film", "##s", "the", "film"]
        lower = [word for word in words if word.startswith("[") or word == word.lower()]
        (copy / "vocab.txt").write_text("\n".join(lower))
        assert load_tokenizer(copy).settings["do_lower_case"] is True


def edited(path: Path, at: int, mask: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= mask
    path.write_bytes(raw)


def spread(size: int, count: int = 120) -> Iterator[int]:
    """Numbers below `size`: both ends, and some between."""
    yield from sorted({*range(20), *range(size - 60, size), *range(0, size, size // count)})


class TestDamage:
    def test_one_flipped_bit_of_the_index(self, copy):
        raw = (copy / INDEX).read_bytes()
        for at in spread(len(raw), 400):
            edited(copy / INDEX, at, 1 << at % 8)
            with pytest.raises(CheckpointError) as caught:
                checkpoint(copy)
            assert caught.value.message.startswith(f"{copy / INDEX}: damaged: ")
            (copy / INDEX).write_bytes(raw)

    def test_one_flipped_bit_of_a_tensor(self, copy):
        bundle = TensorBundle(copy / "bert_model.ckpt")
        for name in (QUERY, "bert/embeddings/word_embeddings", "bert/pooler/dense/bias"):
            where = bundle.entries[name]
            for at in (where.offset, where.offset + where.size // 2, where.offset + where.size - 1):
                edited(copy / DATA, at, 0x10)
                with pytest.raises(CheckpointError) as caught:
                    everything(copy)
                assert caught.value.message.startswith(f"{copy / DATA}: '{name}' is damaged")
                edited(copy / DATA, at, 0x10)

    @pytest.mark.parametrize("name", [INDEX, DATA])
    def test_cut_off(self, copy, name):
        raw = (copy / name).read_bytes()
        for size in spread(len(raw)):
            (copy / name).write_bytes(raw[:size])
            with pytest.raises(CheckpointError) as caught:
                checkpoint(copy)
            assert caught.value.message.startswith(f"{copy / name}: ")

    def test_cut_off_while_open(self, copy):
        weights = checkpoint(copy)
        (copy / DATA).write_bytes((copy / DATA).read_bytes()[:100])
        with pytest.raises(CheckpointError, match=rf"{DATA}: '{QUERY}' is damaged"):
            weights.read("bert.encoder.layer.0.attention.self.query.weight")
        (copy / DATA).unlink()
        with pytest.raises(CheckpointError, match=rf"{DATA}: cannot be read"):
            weights.read("bert.encoder.layer.0.attention.self.query.weight")

    @pytest.mark.parametrize("copy", ["sharded"], indirect=True)
    def test_missing_shard(self, copy):
        shards = sorted(copy.glob("*.data-*"))
        assert [path.name[-14:] for path in shards] == [f"{i:05d}-of-00003" for i in range(3)]
        shards[1].unlink()
        with pytest.raises(CheckpointError) as caught:
            checkpoint(copy)
        assert caught.value.message == f"{copy / INDEX}: names {shards[1].name}, which is missing"

    def test_missing_index(self, tmp_path):
        with pytest.raises(CheckpointError, match=rf"{INDEX}: cannot be read"):
            checkpoint(tmp_path)

    def test_index_of_absurd_size(self, copy):
        with (copy / INDEX).open("r+b") as file:
            file.truncate(LARGEST_INDEX + 1)
        with pytest.raises(CheckpointError, match=rf"{INDEX}: damaged: larger than"):
            checkpoint(copy)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_value_that_is_not_finite(self, tmp_path, value):
        values = VALUES.copy()
        values[1, 2] = value
        write(tmp_path, (b"output_weights", entry(values)))
        (tmp_path / DATA).write_bytes(values.tobytes())
        with pytest.raises(CheckpointError, match=r"'output_weights' holds 1 values that are not"):
            everything(tmp_path)
