"""Tests of `TokenBytes` and `token_texts`: what each token of a text stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from pretune.decoding.text_stream import TokenBytes, token_texts
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from tests.tokenizers.family_folders import folders, write_folder

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


def test_bytes_by_number(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path / "folder", folders()["gemma"]))
    names, text = TokenBytes(tokenizer), "a cat \U0001f98a"
    ids = tokenizer.encode_bare([text])[0].ids
    assert b"".join(names.of(token) for token in ids).decode() == text
    assert token_texts(tokenizer, ids)[-4:] == ["\U0001f98a", "", "", ""]


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


def test_texts_of_tokens_begin_with_a_space_where_words_do(
    byte_level: Tokenizer, tiny_vocab_folder: Path
) -> None:
    (encoded,) = byte_level.encode(["The quotes and"])
    texts = token_texts(byte_level, [*encoded.ids, byte_level.engine.token_to_id(END)])
    assert "".join(texts) == "The quotes and" + END
    assert any(text.startswith(" ") for text in texts)
    # A character whose bytes are in several tokens.
    (split,) = byte_level.encode(["\u1234"])
    assert len(split.ids) == 3
    assert token_texts(byte_level, split.ids) == ["\u1234", "", ""]
    end = byte_level.engine.token_to_id(END)
    # One that is not completed, and bytes that are none.
    assert token_texts(byte_level, [*split.ids[:2], end]) == ["\\xe1", "\\x88", END]
    broken = [split.ids[0], encoded.ids[0], split.ids[1]]
    first = byte_level.engine.id_to_token(encoded.ids[0])
    assert token_texts(byte_level, broken) == ["\\xe1", first, "\\x88"]
    wordpiece = load_tokenizer(tiny_vocab_folder)
    ids = [wordpiece.engine.token_to_id(entry) for entry in ("[CLS]", "good", "##ing", "好")]
    assert token_texts(wordpiece, ids) == ["[CLS]", " good", "ing", " 好"]
