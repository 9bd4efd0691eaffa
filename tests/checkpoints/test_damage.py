"""What is damaged, missing or makes no sense is refused, by file and name."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from pretune.bundle.bundle import load as load_bundle
from pretune.bundle.bundle import outline
from pretune.bundle.convert import convert
from pretune.checkpoints.config import read_config
from pretune.errors import CheckpointError

WORDS = "embeddings.word_embeddings.weight"
QUERY, KEY = (f"encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key"))
INDEX = "model.safetensors.index.json"


class TestDamage:
    def test_missing_part_of_the_backbone(self, load, changed):
        def drop(tensors):
            del tensors["encoder.layer.1.output.dense.weight"]

        with pytest.raises(CheckpointError) as caught:
            load(changed(drop))
        assert caught.value.message.endswith(
            "lack 1 tensors of the bert model: encoder.layer.1.output.dense.weight"
        )

    def test_missing_third_of_a_joined_matrix(self, load, changed):
        def drop(tensors):
            del tensors[KEY]

        with pytest.raises(CheckpointError, match=f"lack 1 tensors.*model: {re.escape(KEY)}\n"):
            load(changed(drop))

    def test_missing_layer_under_a_head(self, load, changed):
        def drop(tensors):
            return {name: t for name, t in tensors.items() if ".layer.1." not in name}

        with pytest.raises(CheckpointError, match="lack the layers from 1 on"):
            load(changed(drop), labels=3)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [(WORDS, (7, 32)), (QUERY, (32, 31)), (KEY, (16, 32)), (KEY, ()), (KEY, (32, 32, 1))],
    )
    def test_wrong_shape_names_file_and_tensor(self, load, changed, name, shape):
        def resize(tensors):
            tensors[name] = torch.zeros(shape)

        folder = changed(resize)
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        assert caught.value.message.startswith(
            f"{folder / 'model.safetensors'}: '{name}' is {list(shape)}, but config.json makes it ["
        )

    def test_thirds_of_a_joined_matrix_must_be_equal(self, load, changed):
        def shift(tensors):
            tensors[QUERY], tensors[KEY] = torch.zeros(40, 32), torch.zeros(24, 32)

        with pytest.raises(CheckpointError, match=r"query\.weight' is \[40, 32\]"):
            load(changed(shift))

    def test_wrong_shape_is_named_as_in_the_file(self, load, changed):
        def resize(tensors):
            tensors["embeddings.LayerNorm.gamma"] = torch.zeros(3)
            del tensors["embeddings.LayerNorm.weight"]

        with pytest.raises(CheckpointError, match=r"'embeddings\.LayerNorm\.gamma' is \[3\]"):
            load(changed(resize), labels=3)

    def test_shapes_are_compared_before_anything_is_allocated(self, load, copy_with_config):
        folder = copy_with_config(hidden_size=2**16, intermediate_size=2**16)  # 32 GB a layer
        with pytest.raises(CheckpointError, match=r"but config\.json makes it"):
            load(folder)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_weight_that_is_not_finite(self, load, changed, value, dtype):
        def break_(tensors):
            tensors[KEY] = tensors[KEY].to(dtype)
            tensors[KEY][3, 5] = value

        with pytest.raises(CheckpointError, match=rf"'{KEY}' holds 1 values that are not finite"):
            load(changed(break_))

    def test_sum_that_overflows_is_fine(self, load, changed):
        def grow(tensors):
            tensors[KEY].fill_(3e38)

        model, _ = load(changed(grow))
        assert model.layers[0].attention.qkv.weight[40, 0] == torch.tensor(3e38)

    @pytest.mark.parametrize("size", [0, 4, 100, 0.5, 0.999])
    @pytest.mark.parametrize("copy", ["tiny_folder"], indirect=True)
    def test_file_that_was_cut_off(self, load, copy, size):
        path = copy / "model.safetensors"
        raw = path.read_bytes()
        path.write_bytes(raw[: size if isinstance(size, int) else int(size * len(raw))])
        with pytest.raises(CheckpointError) as caught:
            load(copy)
        assert caught.value.message.startswith(f"{path}: damaged or not a safetensors file")

    @pytest.mark.parametrize("copy", ["tiny_folder"], indirect=True)
    def test_header_of_absurd_length(self, load, copy):
        (copy / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
        with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
            load(copy)

    @pytest.mark.parametrize("copy", ["tiny_folder"], indirect=True)
    def test_pickle_is_refused_unopened(self, load, copy):
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin here, a pickle"):
            load(copy)

    @pytest.mark.parametrize("copy", ["tiny_folder"], indirect=True)
    def test_no_weights(self, load, copy):
        (copy / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="no weights here"):
            load(copy)


@pytest.mark.parametrize("copy", ["sharded_folder"], indirect=True)
class TestShards:
    def test_missing_shard(self, load, copy):
        shard = sorted(copy.glob("*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(CheckpointError) as caught:
            load(copy)
        assert caught.value.message == (
            f"{copy / INDEX}: names the shard '{shard.name}', which is missing"
        )

    def test_damaged_shard_is_named(self, load, copy):
        shard = sorted(copy.glob("*.safetensors"))[1]
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(CheckpointError) as caught:
            load(copy)
        assert caught.value.message.startswith(f"{shard}: damaged")

    @pytest.mark.parametrize("name", ["../x.safetensors", "{copy}/x.safetensors", "..", "", "a/x"])
    def test_shard_outside_the_folder(self, load, copy, tiny_folder, name):
        # The file is really there: only where it lies can be the reason to refuse it.
        (copy / "a").mkdir()
        for place in (copy.parent / "x.safetensors", copy / "x.safetensors", copy / "a" / "x"):
            shutil.copy(tiny_folder / "model.safetensors", place)
        name = name.format(copy=copy)
        (copy / INDEX).write_text(json.dumps({"weight_map": {WORDS: name}}))
        with pytest.raises(CheckpointError, match="names the shard"):
            load(copy)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            "{}",
            '{"weight_map": []}',
            '{"weight_map": {"a": {}}}',
            "[" * 100_000,
            "\ud800",
        ],
    )
    def test_broken_index(self, load, copy, content):
        (copy / INDEX).write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(
            CheckpointError,
            match=rf"{INDEX}: (not|expected a JSON object)",
        ):
            load(copy)

    def test_one_file_goes_before_an_index(self, load, copy, tiny_folder):
        shutil.copy(tiny_folder / "model.safetensors", copy)
        (copy / INDEX).write_text("broken")
        assert load(copy)[1].missing == ()


class TestConfig:
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
    def test_broken(self, tmp_path, content):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
            read_config(tmp_path)

    def test_no_object(self, tmp_path):
        (tmp_path / "config.json").write_text("[1]")
        with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object"):
            read_config(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no model here \(no config\.json"):
            read_config(tmp_path)

    @pytest.mark.parametrize(
        ("kind", "hint"), [("brt", "Did you mean 'bert'?"), ("qqq", "Known here: ")]
    )
    def test_unknown_model_type(self, copy_with_config, kind, hint):
        with pytest.raises(
            CheckpointError, match=f"model_type '{kind}' is not supported"
        ) as caught:
            load_bundle(copy_with_config(model_type=kind))
        assert hint in caught.value.hint

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
            ({"num_hidden_layers": 0}, "num_hidden_layers"),
            ({"num_hidden_layers": "2"}, "num_hidden_layers"),
            ({"vocab_size": 10**10}, "vocab_size"),
            ({"vocab_size": -1}, "vocab_size"),
            ({"hidden_size": 10**10}, "hidden_size"),
            ({"max_position_embeddings": 10**10}, "max_position_embeddings"),
            (
                {
                    "position_embedding_type": "sinusoidal",
                    "max_position_embeddings": 10**6,
                    "hidden_size": 2**16,
                },
                "sinusoidal",
            ),
            ({"num_attention_heads": 5}, "num_attention_heads"),
            ({"hidden_act": ["gelu"]}, "hidden_act"),
            ({"layer_norm_eps": "tiny"}, "layer_norm_eps"),
            ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob"),
            ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
            ({"hidden_size": -32}, "hidden_size"),
            ({"hidden_size": True}, "hidden_size"),
            ({"num_hidden_layers": None}, "num_hidden_layers"),
            ({"intermediate_size": 64.0}, "intermediate_size"),
            ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
            ({"num_attention_heads": float("inf")}, "num_attention_heads"),
            ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ],
    )
    def test_value_that_makes_no_sense(self, copy_with_config, values, named):
        folder = copy_with_config(**values)
        for use in (load_bundle, outline, lambda source: convert(source, folder / "new")):
            with pytest.raises(CheckpointError) as caught:
                use(folder)
            assert caught.value.message.startswith(f"{folder / 'config.json'}: ")
            assert named in caught.value.message
            assert caught.value.hint
            assert "Did you mean" not in caught.value.hint

    @pytest.mark.parametrize(
        "values",
        [{"id2label": {"1": "a"}}, {"id2label": {"0": "a", "1": "a"}}, {"num_labels": -3}],
    )
    def test_labels_that_make_no_sense(self, copy_with_config, values):
        folder = copy_with_config(architectures=["BertForSequenceClassification"], **values)
        with pytest.raises(CheckpointError, match=next(iter(values))) as caught:
            load_bundle(folder)
        assert caught.value.message.startswith(f"{folder / 'config.json'}: ")

    @pytest.mark.parametrize("count", [1, 3])
    def test_other_number_of_layers_than_the_file_has(self, load, copy_with_config, count):
        # Half a model answers as well as a whole one, only wrongly.
        folder = copy_with_config(num_hidden_layers=count)
        lost = {
            1: "from layer 1 on, it would be left out",
            3: "the weights lack the layers from 2 on",
        }
        for use in (load, load_bundle, outline, lambda source: convert(source, folder / "new")):
            with pytest.raises(CheckpointError) as caught:
                use(folder)
            assert caught.value.message == (
                f"{folder / 'model.safetensors'}: has 2 layers (the last: "
                "'encoder.layer.1.attention.output.LayerNorm.bias'), but config.json makes it "
                f"{count} (num_hidden_layers): {lost[count]}"
            )
            assert "set num_hidden_layers to 2" in caught.value.hint

    @pytest.mark.parametrize("stack", ["encoder_layers", "decoder_layers"])
    def test_other_number_of_layers_in_one_of_two_stacks(self, tmp_path, stack):
        sizes = {"vocab_size": 20, "d_model": 8, "encoder_layers": 2, "decoder_layers": 2}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        inner = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 16}
        config = MarianConfig(**sizes, **heads, **inner, pad_token_id=19, decoder_start_token_id=19)
        MarianMTModel(config).save_pretrained(tmp_path)
        for count in (1, 3):
            path = tmp_path / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {stack: count}))
            with pytest.raises(CheckpointError, match=rf"has 2 layers .*\({stack}\)"):
                outline(tmp_path)

    def test_tokenizer_larger_than_the_model(self, copy_with_config):
        folder = copy_with_config()
        with (folder / "vocab.txt").open("a", encoding="utf-8") as handle:
            handle.write("onemore\n")
        with pytest.raises(
            CheckpointError, match=r"the tokenizer has [\d,]+ tokens, the model only"
        ):
            load_bundle(folder)
