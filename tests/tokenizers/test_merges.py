"""`vocab.json` and `merges.txt`, as GPT-2 was published, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2TokenizerFast, RobertaTokenizer

from pretune.checkpoints.source import find_tokenizer
from pretune.errors import CheckpointError
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer

TEXT = "the lower the newer, the lowest newest low lower; it's 1999 and they've 2 new  ones\n" * 3
CHANGED = {
    "a line of one token": ("merges.txt", "t h\nth\n", r"merges\.txt, line 2: expected two tokens"),
    "three tokens": ("merges.txt", "#version: 0.2\nt h e\n", r"merges\.txt, line 2: expected two"),
    "an unknown token": ("merges.txt", "好 好\n", r"vocab\.json: no vocabulary for the merges"),
    "no number": ("vocab.json", '{"a": "b"}', r"vocab\.json: no vocabulary for the merges"),
    "a list": ("vocab.json", "[1]", r"vocab\.json: expected a JSON object"),
    "another class": (
        "tokenizer_config.json",
        '{"tokenizer_class": "CodeGenTokenizer"}',
        r"of a CodeGenTokenizer, but without tokenizer\.json",
    ),
}


def write(
    folder: Path, vocabulary: dict[str, int], merges: list[list[str]], end: str = "\n"
) -> None:
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_bytes(end.join(lines).encode("utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")


@pytest.fixture(scope="module")
def model() -> tuple[dict[str, int], list[list[str]]]:
    """A vocabulary with its end of text, and its merges."""
    made = json.loads(train_tokenizer([TEXT], "bpe", 300).engine.to_str())["model"]
    return made["vocab"], made["merges"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model) -> Path:
    path = tmp_path_factory.mktemp("gpt2")
    write(path, *model)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> GPT2TokenizerFast:
    return GPT2TokenizerFast.from_pretrained(str(folder))


@given(text=st.one_of(st.text(max_size=40), st.text(alphabet="thelowrns ,'19\n<|>", max_size=60)))
@example("the lowest<|endoftext|> newer")
@example(" \u3000好😀  a\r\n")
def test_ids_are_those_of_transformers(ours, theirs, text: str) -> None:
    found = ours.encode([text])[0].ids
    assert found == theirs(text)["input_ids"]
    assert ours.decode(found, skip_special=False) == text


def test_it_is_merged_at_all(ours, model) -> None:
    assert len(ours.encode(["the lower"])[0].ids) < len("the lower")
    end = model[0]["<|endoftext|>"]
    assert ours.special_id("eos_token") == ours.special_id("bos_token") == end


def test_the_space_before_a_text(model, tmp_path: Path) -> None:
    write(tmp_path, *model)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    theirs = GPT2TokenizerFast.from_pretrained(str(tmp_path))
    found = load_tokenizer(tmp_path).encode(["the lower"])[0].ids
    assert found == theirs("the lower")["input_ids"]
    assert found == load_tokenizer(tmp_path).encode([" the lower"])[0].ids


def test_windows_line_ends_and_mark(model, tmp_path: Path, ours) -> None:
    write(tmp_path, *model, end="\r\n")
    (tmp_path / "merges.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "merges.txt").read_bytes())
    assert load_tokenizer(tmp_path).encode([TEXT])[0].ids == ours.encode([TEXT])[0].ids


def test_saved_and_loaded(ours, tmp_path: Path) -> None:
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path).encode([TEXT])[0].ids == ours.encode([TEXT])[0].ids


def test_tokens_that_were_added(model, tmp_path: Path) -> None:
    write(tmp_path, *model)
    added = {"<user>": len(model[0]), "<bot>": len(model[0]) + 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    text = "<user>the lower<bot> the newest"
    found = load_tokenizer(tmp_path).encode_bare([text])[0].ids
    assert set(added.values()) <= set(found)
    assert found == GPT2TokenizerFast.from_pretrained(tmp_path)(text).input_ids


@pytest.mark.parametrize("named", [True, False])
def test_those_of_roberta(model, tmp_path: Path, named: bool) -> None:
    """Its texts begin with <s>, and often nothing but the vocabulary says so."""
    tokens = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocabulary = {**model[0], **{token: len(model[0]) + i for i, token in enumerate(tokens)}}
    write(tmp_path, vocabulary, model[1])
    if named:
        (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    ours, theirs = load_tokenizer(tmp_path), RobertaTokenizer.from_pretrained(str(tmp_path))
    assert ours.encode([TEXT])[0].ids == theirs(TEXT)["input_ids"]
    assert ours.encode(["a <mask>"], ["b"])[0].ids == theirs("a <mask>", "b")["input_ids"]
    assert ours.special_id("cls_token") == theirs.cls_token_id


def test_those_of_qwen2(model, tmp_path: Path) -> None:
    write(tmp_path, *model)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": ["<|im_end|>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = TEXT + "<|im_end|> 12345 e\u0301"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode([text])[0].ids == theirs(text)["input_ids"]


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("load", [load_tokenizer, find_tokenizer])
def test_damage_is_named(load, model, tmp_path: Path, change: str) -> None:
    write(tmp_path, *model)
    name, content, said = CHANGED[change]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_one_of_the_two_is_no_tokenizer(model, tmp_path: Path, missing: str) -> None:
    write(tmp_path, *model)
    (tmp_path / missing).unlink()
    with pytest.raises(
        CheckpointError, match=r"no tokenizer here[\s\S]*vocab\.json and merges\.txt"
    ):
        load_tokenizer(tmp_path)


def test_as_published(data_folder: Path) -> None:
    folder = data_folder / "vocab" / "gpt2"
    ours, theirs = load_tokenizer(folder), GPT2TokenizerFast.from_pretrained(str(folder))
    texts = ["Hello world", " Hello world<|endoftext|>", "it's 电影 😀\n\n  x", (TEXT + "é") * 9]
    assert [one.ids for one in ours.encode(texts)] == theirs(texts)["input_ids"]
    assert ours.encode(["Hello world"])[0].ids == [15496, 995]
