"""Tests of `TokenBytes`: what each token of a text stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from pretune.decoding.text_stream import TokenBytes
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

TEXTS = ["The naïve café — “quotes” and 中国电影 🎬🙂.", "Привет мир"]
END = "<|endoftext|>"


@pytest.fixture
def byte_level(tmp_path: Path) -> Tokenizer:
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=280, special_tokens=[END], show_progress=False)
    made.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path)


def test_the_bytes_of_tokens_make_up_the_text(byte_level: Tokenizer) -> None:
    names = TokenBytes(byte_level)
    for text in TEXTS:
        ids = byte_level.encode([text])[0].ids
        assert b"".join(names.of(token) for token in ids).decode() == text


def test_a_special_token_is_its_name(byte_level: Tokenizer) -> None:
    names = TokenBytes(byte_level)
    end = byte_level.engine.token_to_id(END)
    assert names.is_special(end)
    assert names.of(end) == END.encode()
    assert not names.is_special(end + 1)


def test_a_token_of_wordpiece_is_its_entry(tiny_vocab_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_vocab_folder)
    names = TokenBytes(tokenizer)
    for entry in ("good", "##ing", "好", "[CLS]"):
        assert names.of(tokenizer.engine.token_to_id(entry)) == entry.encode()
