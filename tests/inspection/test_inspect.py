from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import AutoTokenizer

from pretune.bundle.bundle import load, outline
from pretune.checkpoints.source import find_source
from pretune.errors import CheckpointError, DataError, RunError
from pretune.inspection.inspect import (
    MAX_DRAWN_TOKENS,
    Inspection,
    attention_of,
    chosen,
    components,
    inspect_model,
    kernel_table,
    module_tree,
    needed_tokenizer,
    token_spans,
    vocabulary_of,
)
from pretune.models import kernels
from pretune.render.model_views import inspection_view, kernels_view, tokens_view
from pretune.tokenizers.load import load_tokenizer
from tests.checkpoints.sentence_folders import sentence_folder

MakeFolder = Callable[..., Path]


def shown(view: object) -> str:
    console = Console(width=110)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


class TestParameters:
    def test_bert_base(self, config_folder: MakeFolder) -> None:
        model = outline(config_folder("bert")).model
        assert components(model) == {
            "embeddings": 23_837_184,
            "encoder": 85_054_464,
            "pooler": 590_592,
        }
        assert all(parameter.is_meta for parameter in model.parameters())

    def test_distilbert(self, config_folder: MakeFolder) -> None:
        found = components(outline(config_folder("distilbert")).model)
        assert sum(found.values()) == 66_362_880
        assert list(found) == ["embeddings", "encoder"]

    def test_gpt2_small(self, config_folder: MakeFolder) -> None:
        found = components(outline(config_folder("gpt2")).model)
        assert sum(found.values()) == 124_439_808
        assert list(found) == ["embeddings", "decoder", "final norm"]

    def test_a_classifier_has_a_head(self, config_folder: MakeFolder) -> None:
        folder = config_folder(
            "bert",
            architectures=["BertForSequenceClassification"],
            id2label={"0": "a", "1": "b", "2": "c"},
        )
        assert components(outline(folder).model)["head"] == 3 * 768 + 3

    def test_as_many_as_the_weights(self, tiny_folder: Path) -> None:
        loaded = sum(p.numel() for p in load(tiny_folder).model.parameters())
        assert sum(components(outline(tiny_folder).model).values()) == loaded

    def test_the_share_is_shown(self, config_folder: MakeFolder) -> None:
        text = shown(inspection_view(inspect_model(outline(config_folder("bert")), 1, 8)))
        for name, count, share in (
            ("embeddings", "23,837,184", "21.77 %"),
            ("encoder", "85,054,464", "77.69 %"),
            ("pooler", "590,592", "0.54 %"),
            ("all", "109,482,240", "100.00 %"),
        ):
            (line,) = (line for line in text.splitlines() if line.startswith(f"│{name} "))
            assert count in line
            assert share in line


class TestTree:
    def test_like_layers_are_folded(self, config_folder: MakeFolder) -> None:
        tree = module_tree(outline(config_folder("bert")).model)
        (layers,) = (part for part in tree.parts if part.name.startswith("layers"))
        assert (layers.name, layers.count, layers.parameters) == ("layers 0-11", 12, 7_087_872)
        attention = layers.parts[0]
        qkv = attention.parts[0]
        assert (qkv.name, qkv.shapes) == ("qkv", {"weight": (2304, 768), "bias": (2304,)})

    def test_a_tree_adds_up(self, config_folder: MakeFolder) -> None:
        tree = module_tree(outline(config_folder("gpt2")).model)
        assert sum(part.count * part.parameters for part in tree.parts) == tree.parameters

    def test_unlike_neighbours_are_not_folded(self) -> None:
        layers = torch.nn.ModuleList([torch.nn.Linear(2, n) for n in (3, 3, 4)])
        parts = module_tree(torch.nn.ModuleDict({"layers": layers})).parts
        assert [part.name for part in parts] == ["layers 0-1", "layers 2"]
        assert [part.count for part in parts] == [2, 1]

    def test_the_view(self, config_folder: MakeFolder) -> None:
        text = shown(inspection_view(inspect_model(outline(config_folder("gpt2")), 1, 8)))
        assert "layers 0-11  PreNormLayer  each 7,087,872" in text
        assert "tokens  Embedding  weight [50257, 768]  38,597,376" in text
        assert "no tokenizer here" in text


class TestInspection:
    def test_json(self, tiny_folder: Path) -> None:
        found: Inspection = inspect_model(outline(tiny_folder), 4, 16)
        again = json.loads(json.dumps(found.to_dict()))
        assert again["parameters"] == sum(again["components"].values())
        assert again["flops"]["training_per_token"] == 3 * again["flops"]["per_token"]
        memory = again["memory"]
        assert memory["inference"] > memory["weights"] + memory["forward"]
        assert (memory["batch"], memory["length"]) == (4, 16)
        assert again["tree"]["parts"][1]["name"] == "layers 0-1"
        assert again["vocabulary"]["special"][0] == {
            "names": ["pad_token"],
            "token": "[PAD]",
            "id": 0,
        }

    def test_the_settings_of_sentence_transformers(
        self, config_folder: MakeFolder, tmp_path: Path
    ) -> None:
        folder = sentence_folder(
            tmp_path / "model",
            config_folder("gpt2", n_layer=1),
            transformer={"max_seq_length": 256},
            modules=["Dense"],
        )
        found = inspect_model(outline(folder), 1, 8)
        embedding = json.loads(json.dumps(found.to_dict()))["embedding"]
        assert (embedding["pooling"], embedding["max_length"]) == ("mean", 256)
        # What `embed` refuses is told; a long path is folded.
        text = "".join(shown(inspection_view(found)).replace("│", " ").split())
        assert 'pooling"mean"' in text
        assert "hasaDense" in text

    def test_the_usual_length_unless_there_are_fewer_positions(
        self, tiny_folder: Path, config_folder: MakeFolder
    ) -> None:
        assert inspect_model(outline(tiny_folder), 1).flops.length == 64
        assert inspect_model(outline(config_folder("distilbert")), 1).flops.length == 128

    def test_a_model_without_positions_reads_any_length(self) -> None:
        found = inspect_model(outline("nnlm"), batch=1, length=5000)
        assert found.positions is None
        assert found.flops.length == 5000
        assert "parameters, any length" in shown(inspection_view(found))

    def test_more_tokens_than_positions(self, tiny_folder: Path) -> None:
        with pytest.raises(RunError, match=r"--length 65: the model has 64 positions"):
            inspect_model(outline(tiny_folder), 1, 65)

    def test_twice_is_the_same(self, tiny_folder: Path) -> None:
        model = outline(tiny_folder)
        assert inspect_model(model, 2, 8) == inspect_model(model, 2, 8)


class TestVocabulary:
    def test_bert(self, minilm: Path) -> None:
        found = vocabulary_of(load_tokenizer(minilm))
        assert found.size == 30_522
        assert {one.token: one.id for one in found.special} == {
            "[PAD]": 0,
            "[UNK]": 100,
            "[CLS]": 101,
            "[SEP]": 102,
            "[MASK]": 103,
        }
        assert found.special[2].names == ("cls_token",)

    def test_a_folder_without_one(self, config_folder: MakeFolder) -> None:
        found = outline(config_folder("bert"))
        assert inspect_model(found, 1, 8).vocabulary is None
        with pytest.raises(CheckpointError, match="no tokenizer here"):
            needed_tokenizer(found)


class TestPieces:
    TEXT = "Unaffable filmography, naïve 好电影 $5!"

    def test_as_transformers_cuts_it(self, minilm: Path) -> None:
        theirs = AutoTokenizer.from_pretrained(minilm)
        wanted = theirs(self.TEXT, return_offsets_mapping=True)
        found = token_spans(load_tokenizer(minilm), self.TEXT)
        assert [one.id for one in found] == wanted["input_ids"]
        assert [one.piece for one in found] == theirs.convert_ids_to_tokens(wanted["input_ids"])
        offsets = [(one.start or 0, one.end or 0) for one in found]
        assert offsets == [tuple(pair) for pair in wanted["offset_mapping"]]

    def test_pieces_stand_for_the_text(self, minilm: Path) -> None:
        found = token_spans(load_tokenizer(minilm), self.TEXT)
        assert "".join(one.text for one in found) == self.TEXT.replace(" ", "")
        assert found[0].start is None
        assert found[0].text == ""

    def test_the_view(self, tiny_folder: Path) -> None:
        text = shown(tokens_view(token_spans(load_tokenizer(tiny_folder), "un[b] unaffable")))
        assert "##able" in text
        assert "[SEP]" in text, "not taken for markup"

    def test_no_text(self, tiny_folder: Path) -> None:
        assert [p.piece for p in token_spans(load_tokenizer(tiny_folder), "")] == ["[CLS]", "[SEP]"]


class TestAttention:
    def test_every_row_sums_to_one(self) -> None:
        tokens, maps = attention_of(load(find_source("minilm")), "The cat sat on the mat.")
        assert tokens == ["[CLS]", "the", "cat", "sat", "on", "the", "mat", ".", "[SEP]"]
        assert maps.shape == (6, 12, 9, 9)
        torch.testing.assert_close(maps.sum(-1), torch.ones(6, 12, 9))

    def test_too_long_and_empty(self, tiny_folder: Path) -> None:
        bundle = load(tiny_folder)
        attention_of(bundle, "the " * (MAX_DRAWN_TOKENS - 2))
        with pytest.raises(DataError, match="has 65 tokens"):
            attention_of(bundle, "the " * (MAX_DRAWN_TOKENS - 1))

    def test_no_such_layer(self) -> None:
        assert chosen("layer", None, 3) == [0, 1, 2]
        assert chosen("head", 2, 3) == [2]
        for wrong in (3, -1):
            with pytest.raises(RunError, match=f"--layer {wrong}: the model has layers 0 to 2"):
                chosen("layer", wrong, 3)


class TestKernels:
    def test_every_product_with_its_times(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = {"mkl": 2.0, "onednn": 1.0}
        monkeypatch.setattr(kernels, "timing", lambda shape: kernels.Timing("onednn", times))
        model = nn.Linear(128, 256)
        table = kernel_table(model).to_dict()
        assert table["mode"] == "default"  # tests have no cache
        assert [(c["kind"], c["rows"], c["used"]) for c in table["classes"]] == [
            ("forward", 4, "mkl"),
            ("forward", 128, "mkl"),
            ("input", 128, "mkl"),
            ("weight", 128, "mkl"),
        ]
        assert "own kernel is used: no cache" in shown(kernels_view(kernel_table(model)))
        monkeypatch.setattr(kernels, "mode", lambda: kernels.MEASURED)
        assert {c["used"] for c in kernel_table(model).to_dict()["classes"]} == {"onednn"}
        text = shown(kernels_view(kernel_table(model)))
        assert "backward: weight" in text
        assert "128 and more" in text
        assert "2.000" in text
