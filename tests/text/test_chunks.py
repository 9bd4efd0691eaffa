from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from pretune.text.chunks import split_text
from pretune.tokenizers.load import load_tokenizer

TEXTS = st.lists(st.sampled_from(["good", "film", "\n", " ", "\n\n", "看", "x1.", "é", "'"])).map(
    "".join
)


@given(text=TEXTS)
def test_pieces_give_the_tokens_of_the_whole(tiny_vocab_folder: Path, text: str) -> None:
    engine = load_tokenizer(tiny_vocab_folder).engine
    cut = list(split_text(text, 5))
    assert "".join(cut) == text
    tokens, base = [], 0
    for piece in cut:
        found = engine.encode(piece, add_special_tokens=False)
        tokens += [
            (i, a + base, b + base) for i, (a, b) in zip(found.ids, found.offsets, strict=True)
        ]
        base += len(piece)
    whole = engine.encode(text, add_special_tokens=False)
    assert tokens == [(i, a, b) for i, (a, b) in zip(whole.ids, whole.offsets, strict=True)]


def test_long_texts_are_cut() -> None:
    assert len(list(split_text("a film\nto see\ntwice\nor so\n", 5))) > 2


@pytest.mark.parametrize("length", range(1, 8))
def test_no_word_of_gpt2s_pre_tokenizer_is_cut(length: int) -> None:
    """All texts of a letter, a space and a line end: a word takes the space before it along."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for characters in itertools.product("a \n", repeat=length):
        text = "".join(characters)
        cut = list(split_text(text, 1))
        found = [word for piece in cut for word, _ in splitter.pre_tokenize_str(piece)]
        assert found == [word for word, _ in splitter.pre_tokenize_str(text)]


@given(st.text(alphabet="ab \n\t.", max_size=200), st.integers(1, 20))
def test_and_those_of_gpt2s_pre_tokenizer(text: str, size: int) -> None:
    """Whose cuts depend on what follows a space."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut = list(split_text(text, size))
    assert "".join(cut) == text
    found = [word for piece in cut for word, _ in splitter.pre_tokenize_str(piece)]
    assert found == [word for word, _ in splitter.pre_tokenize_str(text)]
