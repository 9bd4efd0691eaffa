"""Tokenizers of GGUF files: the same ids as the tokenizers that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

from pretune.errors import CheckpointError
from pretune.tokenizers.chat_template import ChatTemplate
from pretune.tokenizers.gguf_vocabulary import gguf_tokenizer, merges_of_scores
from pretune.tokenizers.load import load_tokenizer

FILE = Path("model.gguf")
#: Letters, a word, two digits and their pair, and the space as byte-level BPE writes it.
TOKENS = ["<end>", "t", "h", "e", "th", "the", "1", "2", "12", "Ġ", "Ġthe", "ç", "<tool>", "[PAD]"]
TYPES = [3, *[1] * 11, 4, 5]
MERGES = ["t h", "th e", "1 2", "Ġ the"]
#: A vocabulary of SentencePiece: its bytes are not all there.
PIECES = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "ab", "▁a", "▁ab", "ba"]
SCORES = [0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -7.0, -8.0, -2.0, -1.0, -3.0, -4.0]


def byte_level(**more: Any) -> dict[str, Any]:
    entries = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": TOKENS,
        "token_type": TYPES,
        "merges": MERGES,
        "eos_token_id": 0,
    }
    return {f"tokenizer.ggml.{name}": v for name, v in (entries | more).items() if v is not None}


def llama(**more: Any) -> dict[str, Any]:
    entries = {
        "model": "llama",
        "tokens": PIECES,
        "token_type": [2, 3, 3, 6, 6, *[1] * 7],
        "scores": SCORES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{name}": v for name, v in (entries | more).items() if v is not None}


def tokens_of(entries: dict[str, Any], text: str) -> list[str]:
    tokenizer = gguf_tokenizer(entries, FILE)
    (encoded,) = tokenizer.encode([text])
    return tokenizer.tokens(encoded.ids)


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["the", "Ġthe", "12", "12"]),
        ("smollm", ["the", "Ġthe", "1", "2", "1", "2"]),
        ("llama-bpe", ["the", "Ġthe", "12", "1", "2"]),
        ("qwen2", ["the", "Ġthe", "1", "2", "1", "2"]),
    ],
)
def test_words_are_cut_as_the_file_says(pre: str, expected: list[str]) -> None:
    assert tokens_of(byte_level(pre=pre), "the the1212") == expected


def test_smollm_cuts_as_its_published_tokenizer() -> None:
    """The pre-tokenizer in the `tokenizer.json` of HuggingFaceTB/SmolLM2-135M-Instruct."""
    ours = gguf_tokenizer(byte_level(pre="smollm"), FILE).engine.pre_tokenizer
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    for text in ("It's 2024,\n\nI'd say  42%", "  x١٢３½", "中文12字", "a\t\tb"):
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_special_tokens_are_never_cut_and_rows_without_a_token_are_none() -> None:
    tokenizer = gguf_tokenizer(byte_level(), FILE)
    assert tokenizer.special == {"eos_token": "<end>"}
    assert tokenizer.end_id == 0
    (encoded,) = tokenizer.encode(["the<tool><end>"])
    assert encoded.ids == [5, 12, 0]
    assert tokenizer.decode(encoded.ids) == "the<tool>"
    assert tokenizer.vocab_size == 13


@pytest.mark.parametrize("entries", [byte_level(pre="qwen2"), llama()])
def test_a_saved_one_is_the_same(entries: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer(entries, FILE)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.special == tokenizer.special
    for text in ("the ab é 12", "abba<end></s>"):
        if "é" not in text or "llama" in str(entries):
            assert again.encode([text]) == tokenizer.encode([text])


def test_pieces_are_joined_by_their_scores() -> None:
    # `▁a` has the best score, then `ab`.
    assert tokens_of(llama(), "ab abba") == ["<s>", "▁ab", "▁ab", "ba"]
    # What has no piece is written in bytes.
    assert tokens_of(llama(add_bos_token=False), "aé") == ["▁a", "<0xC3>", "<0xA9>"]
    assert tokens_of(llama(add_space_prefix=False, add_eos_token=True), "a") == ["<s>", "a", "</s>"]
    tokenizer = gguf_tokenizer(llama(), FILE)
    assert tokenizer.decode([1, 10, 9, 3, 4]) == "ab aé"


def test_merges_are_those_of_transformers() -> None:
    """With one engine each, as pairs of one token and one score may come in another order."""
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    theirs = generate_merges(vocabulary, dict(zip(PIECES, SCORES, strict=True)))
    ours = merges_of_scores(vocabulary, SCORES)
    assert sorted(ours) == sorted(theirs)
    engines = [RustTokenizer(models.BPE(vocabulary, merges)) for merges in (ours, theirs)]
    for text in ("ab", "abab", "▁abba", "▁a▁b", "bababa"):
        first, second = (engine.encode(text).tokens for engine in engines)
        assert first == second


def test_templates_are_kept() -> None:
    entries = byte_level() | {"tokenizer.chat_template": "{{ messages[0].content }}{{ eos_token }}"}
    template = ChatTemplate.of(gguf_tokenizer(entries, FILE))
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "hi<end>"
    named = {**entries, "tokenizer.chat_template.tool_use": "tools"}
    listed = gguf_tokenizer(named, FILE).settings["chat_template"]
    assert [item["name"] for item in listed] == ["default", "tool_use"]


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        (byte_level(pre="viking"), r"tokenizer\.ggml\.pre is 'viking': pretune does not know"),
        (byte_level(pre=None), r"tokenizer\.ggml\.pre is missing"),
        (byte_level(model="rwkv"), r"tokenizer\.ggml\.model is 'rwkv'"),
        (byte_level(model=None), r"tokenizer\.ggml\.model is missing"),
        (byte_level(tokens=None), "tokens is missing|0 tokens"),
        (byte_level(tokens=["a", 1]), "no list of the right type"),
        (byte_level(token_type=[1]), "14 tokens, and the types of 1"),
        (byte_level(tokens=[*TOKENS[:-2], "t", "[PAD]"]), "a token is there twice"),
        (byte_level(merges=["t h e"]), "merge 1 is not two tokens"),
        (byte_level(merges=["x y"]), "merges do not fit its tokens"),
        (byte_level(eos_token_id=99), "eos_token_id is 99, of 14 tokens"),
        (byte_level(eos_token_id=-1), "eos_token_id is -1"),
        (byte_level(add_bos_token=True), "but no tokenizer.ggml.bos_token_id"),
        (llama(scores=SCORES[:-1]), "12 tokens, and 11 scores"),
        (llama(scores=[*SCORES[:-1], float("nan")]), "scores has one that is no number"),
        (byte_level(eos_token_id="x" * 10**5), "eos_token_id is 'x{50,100}, of 14 tokens"),
        (byte_level() | {"tokenizer.chat_template": 3}, "is not a text"),
    ],
)
def test_what_cannot_be_read_is_named(entries: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        gguf_tokenizer(entries, FILE)
    assert caught.value.message.startswith("model.gguf: ")
    assert caught.value.hint


def test_what_takes_hours_to_merge_is_refused() -> None:
    long = "a" * 100_000
    entries = llama(tokens=[*PIECES, long], token_type=[1] * 13, scores=[*SCORES, -20.0])
    with pytest.raises(CheckpointError, match="a token of 100,000 characters"):
        gguf_tokenizer(entries, FILE)
    # A symbol that is found as a whole may have any length.
    entries = entries | {"tokenizer.ggml.token_type": [2, 3, 3, 6, 6, *[1] * 7, 4]}
    assert tokens_of(entries, f"ab{long}")[-1] == long
