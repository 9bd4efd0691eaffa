"""What pretune does not read is refused as what it is; what wrappers add to names is dropped."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn

from pretune.bundle.bundle import load, outline
from pretune.bundle.convert import convert
from pretune.checkpoints.config import read_config, sizes_of
from pretune.checkpoints.load import load_into
from pretune.checkpoints.manifest import write_manifest
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.source import find_source
from pretune.checkpoints.unsupported import OTHER_FAMILIES
from pretune.errors import CheckpointError, Note
from pretune.models.bert import BertConfig
from pretune.models.families import FAMILIES

LFS = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 440449768\n"
)
SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
WAYS_IN = (load, outline, lambda folder: convert(folder, folder.parent / "converted"))


def refused(use: Callable[[Path], Any], folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        use(folder)
    return caught.value


def edit(folder: Path, name: str = "config.json", **entries: Any) -> Path:
    """Change entries of a JSON file; an entry that is None is removed."""
    path = folder / name
    values = json.loads(path.read_text()) if path.exists() else {}
    values |= entries
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


@pytest.fixture
def bert(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT to change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "bert"))


class TestOtherFamilies:
    def test_the_list_is_of_families_that_transformers_knows(self) -> None:
        known = set(transformers.CONFIG_MAPPING.keys())
        assert OTHER_FAMILIES.keys() - known <= {"transfo-xl"}  # which transformers 5 dropped
        assert not OTHER_FAMILIES.keys() & FAMILIES.keys()

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("roberta-prelayernorm", "RoBERTa-PreLayerNorm"),
            ("xlm-roberta-xl", "XLM-RoBERTa-XL"),
            ("bart", "BART"),
            ("nomic_bert", "NomicBERT"),
            ("deberta", "DeBERTa (the first version)"),
            ("gpt_neox", "GPT-NeoX"),
            ("umt5", "umT5"),
        ],
    )
    def test_is_named_and_no_other_suggested(self, bert: Path, kind: str, name: str) -> None:
        for use in WAYS_IN:
            error = refused(use, edit(bert, model_type=kind))
            assert f"of the family {name}" in error.message
            assert "pretune does not read yet" in error.message
            assert "Did you mean" not in str(error)
            assert "It reads bert, " in str(error.hint)

    def test_a_wrong_spelling_still_gets_the_nearest(self, bert: Path) -> None:
        assert refused(load, edit(bert, model_type="distillbert")).hint == (
            "Did you mean 'distilbert'?"
        )

    def test_code_of_its_own(self, bert: Path) -> None:
        error = refused(load, edit(bert, model_type="berty", auto_map={"AutoModel": "m.M"}))
        assert "never runs" in str(error.hint)

    @pytest.mark.parametrize(
        ("architecture", "family"),
        [("BertModel", "bert"), ("GPT2LMHeadModel", "gpt2"), ("ElectraForPreTraining", "electra")],
    )
    def test_without_a_model_type(self, bert: Path, architecture: str, family: str) -> None:
        error = refused(load, edit(bert, model_type=None, architectures=[architecture]))
        assert (
            error.message
            == f"{bert / 'config.json'}: no model_type, which names the family " + ("of the model")
        )
        assert f'"model_type": "{family}"' in str(error.hint)
        assert "It reads bert" in str(refused(load, edit(bert, architectures=None)).hint)


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """A bare RoBERTa whose config.json says that it is a BERT, as a person may rename it."""
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=66, type_vocab_size=1)
    folder = tmp_path / "roberta"
    transformers.RobertaModel(config).save_pretrained(folder)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghij"]
    engine = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}))
    engine.add_special_tokens(tokens[:5])
    engine.save(str(folder / "tokenizer.json"))
    return edit(folder, model_type="bert", architectures=None)


class TestDisguised:
    def test_a_renamed_roberta(self, roberta: Path) -> None:
        for use in (load, outline):
            error = refused(use, roberta)
            assert error.message.startswith(f"{roberta / 'config.json'}: model_type is 'bert', but")
            for sign in ("pad_token_id 1", "66", "type_vocab_size 1", "<pad> as token 1"):
                assert sign in error.message
            assert "RoBERTa" in error.message
        assert '"model_type": "roberta"' in str(error.hint)
        # Whoever knows better has a way.
        assert load(edit(roberta, pad_token_id=0), bare=True).task is None

    @pytest.mark.parametrize(
        "entries",
        [
            {"type_vocab_size": 2, "max_position_embeddings": 64},  # the tokenizer remains
            {"tokenizer_class": "XLMRobertaTokenizer"},
            {"model_type": "electra", "embedding_size": 16},
            {"architectures": ["BertModel"]},  # all signs speak against the class
            {"architectures": ["RobertaForMaskedLM"], "pad_token_id": 0},
            {"architectures": ["XLMRobertaModel"], "pad_token_id": 0},
        ],
    )
    def test_with_other_signs(self, roberta: Path, entries: dict[str, Any]) -> None:
        error = refused(read_config, edit(roberta, **entries))
        assert "would answer wrongly" in error.message

    def test_what_is_said_to_be_of_a_family_that_is_not_read(self, bert: Path) -> None:
        error = refused(read_config, edit(bert, architectures=["LongformerModel"]))
        assert "Longformer, which pretune does not read yet" in error.message

    def test_a_roberta_by_its_own_name_is_read(self, roberta: Path) -> None:
        assert (
            load(edit(roberta, model_type="roberta"), bare=True).backbone.config.pad_token_id == 1
        )

    @pytest.mark.parametrize(
        "entries",
        [
            {"type_vocab_size": 1},
            {"max_position_embeddings": 514},
            {"pad_token_id": 1},
            {"type_vocab_size": 1, "max_position_embeddings": 514},
            {"type_vocab_size": 1, "pad_token_id": 1},
            # intfloat/multilingual-e5-small: a BERT with XLM-R's vocabulary.
            {"tokenizer_class": "XLMRobertaTokenizer", "pad_token_id": 0},
            {"architectures": ["Contriever"], "type_vocab_size": 1},
        ],
    )
    def test_a_bert_with_unusual_settings(self, bert: Path, entries: dict[str, Any]) -> None:
        config = read_config(edit(bert, **entries))
        assert config["model_type"] == "bert"

    def test_a_gpt2_that_pads_with_token_1(self, bert: Path) -> None:
        edit(bert, model_type="gpt2", pad_token_id=1, tokenizer_class="RobertaTokenizer")
        edit(bert, architectures=["GPT2LMHeadModel"])
        assert read_config(bert)["model_type"] == "gpt2"


class TestFolders:
    """A folder of another tool is named as what it is, with the way out."""

    @pytest.mark.parametrize("with_config", [True, False])
    @pytest.mark.parametrize(
        ("name", "what", "way_out"),
        [
            ("adapter_config.json", "only an adapter", "--adapter"),
            ("tf_model.h5", "TensorFlow", "from_tf=True"),
            ("flax_model.msgpack", "Flax", "from_flax=True"),
            ("model.onnx", "ONNX", "exported from"),
            ("model_index.json", "diffusers", "language models"),
            ("epoch=3.ckpt", "training checkpoint of another tool", "save_pretrained"),
            ("weights.pt", "pickle", "model.safetensors"),
            ("model.fp16.safetensors", "another name", "rename"),
        ],
    )
    def test_of_other_tools(
        self, tmp_path: Path, with_config: bool, name: str, what: str, way_out: str
    ) -> None:
        (tmp_path / name).write_text("{}")
        if with_config:
            edit(tmp_path, model_type="bert")
        error = refused(load, tmp_path)
        assert what in error.message
        assert str(tmp_path) in error.message
        assert way_out in str(error.hint)

    @pytest.mark.parametrize("with_config", [True, False])
    def test_of_ctranslate2(self, tmp_path: Path, with_config: bool) -> None:
        for name in ("model.bin", "shared_vocabulary.json"):
            (tmp_path / name).write_text("{}")
        if with_config:
            edit(tmp_path, layer_norm_epsilon=1e-5)
        error = refused(load, tmp_path)
        assert "only a model of CTranslate2: model.bin" in error.message
        assert "CTranslate2 runs it" in str(error.hint)

    @pytest.mark.parametrize("use", [load, outline])
    def test_of_the_hub_with_onnx_alone(self, bert: Path, use: Callable[[Path], Any]) -> None:
        (bert / "onnx").mkdir()
        (bert / "onnx" / "model.onnx").write_text("{}")
        use(bert)  # beside weights it does not matter
        (bert / "model.safetensors").unlink()
        error = refused(use, bert)
        assert "only an ONNX model, which cannot be trained: onnx/model.onnx" in error.message
        write_manifest(bert)
        (bert / "onnx" / "model.onnx").write_text("{")
        assert "onnx/model.onnx: damaged (1 bytes, written were 2)" in refused(use, bert).message

    def test_a_file_of_another_engine(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_text("{}")
        error = refused(load, tmp_path / "model.onnx")
        assert "model.onnx: no model that pretune reads, but only an ONNX model" in error.message
        assert "model.safetensors" in str(error.hint)

    def test_an_adapter_inside_its_model(self, bert: Path) -> None:
        (bert / "adapter").mkdir()
        edit(bert / "adapter", "adapter_config.json", base_model_name_or_path="me/base")
        error = refused(load, bert / "adapter")
        assert "(me/base)" in error.message
        assert error.hint == f"The whole model is in {bert}."

    def test_only_a_pickle_without_a_config(self, tmp_path: Path) -> None:
        (tmp_path / "pytorch_model.bin").write_bytes(b"")
        error = refused(load, tmp_path)
        assert "without the config.json" in error.message
        assert "Copy config.json" in str(error.hint)

    @pytest.mark.parametrize("inner", ["checkpoint-500", "0_Transformer", "snapshots/0a1b"])
    def test_models_in_folders_in_it(self, tmp_path: Path, inner: str) -> None:
        (tmp_path / inner).mkdir(parents=True)
        edit(tmp_path / inner, model_type="bert")
        assert str(tmp_path / inner) in str(refused(find_source, tmp_path).hint)

    def test_a_file_in_place_of_its_folder(self, bert: Path) -> None:
        error = refused(load, bert / "model.safetensors")
        assert "is a file, not a folder" in error.message
        assert error.hint == f"Give the folder: {bert}."


class TestPointersOfGitLfs:
    @pytest.mark.parametrize(
        "name", ["config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"]
    )
    def test_in_the_place_of_a_file(self, bert: Path, name: str) -> None:
        (bert / name).write_text(LFS)
        error = refused(load, bert)
        assert error.message == f"{bert / name}: is a Git LFS pointer, not the file itself"
        assert "git lfs pull" in str(error.hint)

    @pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "vocab.json"])
    def test_in_the_place_of_a_tokenizer(self, bert: Path, name: str) -> None:
        (bert / "vocab.txt").unlink()
        for file in ("vocab.json", "merges.txt"):
            (bert / file).write_text("{}")
        (bert / name).write_text(LFS)
        assert "git lfs pull" in str(refused(load, bert).hint)

    def test_in_the_place_of_a_pickle(self, bert: Path) -> None:
        (bert / "model.safetensors").unlink()
        (bert / "pytorch_model.bin").write_text(LFS)
        error = refused(lambda folder: load(folder, allow_pickle=True), bert)
        assert "git lfs pull" in str(error.hint)


class TestWrappers:
    """`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.` of a class around it."""

    @pytest.mark.parametrize(
        "front",
        ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."],
    )
    @pytest.mark.parametrize("prefix", ["", "bert."])
    def test_are_dropped_and_named(self, bert: Path, front: str, prefix: str) -> None:
        expected = load(bert).model.state_dict()
        path = bert / "model.safetensors"
        save_file({front + prefix + k: v for k, v in load_file(path).items()}, path)
        with pytest.warns(Note, match=f"'{front}{prefix}") as caught:
            found = load(bert)
        assert len(caught) == 1
        assert found.report is not None
        assert (found.report.missing, found.report.unexpected) == ((), ())
        assert all(torch.equal(v, expected[k]) for k, v in found.model.state_dict().items())

    def test_inside_names(self, bert: Path) -> None:
        expected = load(bert).model.state_dict()
        path = bert / "model.safetensors"
        tensors = {
            k.replace("layer.1.", "layer.1._orig_mod."): v for k, v in load_file(path).items()
        }
        save_file(tensors, path)
        with pytest.warns(Note, match=r"layer\.1\._orig_mod\."):
            found = load(bert).model.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in found.items())

    def test_what_torch_itself_writes(self, bert: Path) -> None:
        theirs = transformers.BertModel.from_pretrained(bert)
        torch.save(nn.DataParallel(theirs).state_dict(), bert / "pytorch_model.bin")
        (bert / "model.safetensors").unlink()
        with pytest.warns(Note, match=r"'module\.embeddings\."):
            found = load(bert, allow_pickle=True).report
        assert found is not None
        assert (found.missing, found.unexpected) == ((), ())

    def test_a_marians_own_prefix_stays(self, tmp_path: Path) -> None:
        config = transformers.MarianConfig(
            vocab_size=20,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            max_position_embeddings=16,
            pad_token_id=19,
            decoder_start_token_id=19,
        )
        transformers.MarianMTModel(config).save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        save_file({f"module.{k}": v for k, v in load_file(path).items()}, path)
        with pytest.warns(Note, match=r"'module\.model\."):
            assert outline(tmp_path).task is not None
        save_file({k.removeprefix("module."): v for k, v in load_file(path).items()}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Note)
            outline(tmp_path)

    def test_two_tensors_that_get_one_name(self, bert: Path) -> None:
        path = bert / "model.safetensors"
        tensors = load_file(path)
        name = "pooler.dense.weight"
        save_file({**tensors, "pooler._orig_mod.dense.weight": tensors[name] + 1}, path)
        assert "names of one tensor" in refused(load, bert).message

    def test_another_module_around_it_is_named_as_in_the_file(self, bert: Path) -> None:
        path = bert / "model.safetensors"
        save_file({f"net.bert.{k}": v for k, v in load_file(path).items()}, path)
        error = refused(load, bert)
        assert "lack" in error.message
        assert "'net.bert.embeddings." in str(error.hint)


#: transformers' classes with heads, of every family that both have; some only in the long run.
KINDS = ("Bert", "DistilBert", "Electra", "GPT2", "Roberta", "Albert", "Ernie")
CLASSES = [
    pytest.param(name, marks=[pytest.mark.slow] if kind in ("Roberta", "Albert", "Ernie") else [])
    for name in dir(transformers)
    for kind in KINDS
    if name.startswith((f"{kind}For", f"{kind}LMHead", f"{kind}DoubleHeads"))
]


@pytest.mark.parametrize(
    ("kind", "entries", "named"),
    [
        ("bert", {"per_layer_config": {"1": {"layer_norm_eps": 0.1}}}, "per_layer_config gives"),
        ("bert", {"quantization_config": {"quant_method": "bitnet"}}, ".*of the method 'bitnet'"),
        ("bert", {"quantization_config": 8}, ".*of the method 8,"),
        ("llama", {"is_causal": False}, "is_causal is False"),
        ("gpt2", {"is_causal": None}, "is_causal is None"),
        ("t5", {"is_causal": 0}, "is_causal is 0"),
    ],
)
def test_entries_that_change_what_any_model_computes(
    kind: str, entries: dict[str, Any], named: str
) -> None:
    family = FAMILIES[kind]
    plain = next(iter(family.presets.values()))
    assert sizes_of(family, plain, "here").model_type == kind
    with pytest.raises(CheckpointError, match=f"^here: {named}"):
        sizes_of(family, {**plain, **entries}, "here")


def test_entries_that_change_nothing_here() -> None:
    """An encoder sees all tokens anyway, and our own 8 bits are read."""
    entries: dict[str, Any] = {"is_causal": False, "per_layer_config": {}}
    entries["quantization_config"] = {"quant_method": "pretune_int8"}
    assert sizes_of(FAMILIES["bert"], entries, "here") == BertConfig()


@pytest.mark.parametrize("name", CLASSES)
def test_what_published_heads_leave_over_is_worth_no_note(name: str, tmp_path: Path) -> None:
    kind = getattr(transformers, name)
    small = {"bert": SIZES, "electra": {**SIZES, "embedding_size": 16}}
    small["gpt2"] = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    small["distilbert"] = {
        "vocab_size": 60,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 8,
    }
    model_type = kind.config_class.model_type
    decoder = name in ("BertLMHeadModel", "RobertaForCausalLM", "ErnieForCausalLM")
    config = kind.config_class(**small.get(model_type, SIZES), is_decoder=decoder)
    kind(config).save_pretrained(tmp_path)
    family = FAMILIES[model_type]
    sizes = family.backbone.config_class.from_dict({**read_config(tmp_path), "is_decoder": False})
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        _, report = load_into(
            lambda: family.build(sizes), open_weights(tmp_path), tmp_path, family, "backbone"
        )
    assert report.unknown == ()
