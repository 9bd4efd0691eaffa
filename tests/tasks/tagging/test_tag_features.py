"""The words of texts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.tasks.tagging.features import split_words


def words(text: str, *, characters: bool = False) -> list[str]:
    return [text[a:b] for a, b in split_words(text, characters=characters)]


def test_words_of_texts() -> None:
    assert words('"Hi," said @ann (U.S).') == [
        '"',
        "Hi",
        ",",
        '"',
        "said",
        "@ann",
        "(",
        "U.S",
        ")",
        ".",
    ]
    assert words("在China的人") == ["在", "China", "的", "人"]
    assert words("a b1", characters=True) == ["a", "b", "1"]


@pytest.mark.parametrize(
    "parts",
    [
        ["नई", "दिल्ली", "भारत", "की", "राजधानी", "है", "।"],
        [unicodedata.normalize("NFD", "Orléanné"), ",", unicodedata.normalize("NFD", "café")],
        [*"(", "می\u200cخواهم", *")."],
        ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "Tokyo", "\u2764\ufe0f", "!"],
        ["\ufeff“", "Hello", "”\u200f"],
        ["葛\U000e0100", "城", "市"],
    ],
)
def test_marks_and_formats_are_with_their_character(parts: list[str]) -> None:
    assert words(" ".join(parts)) == parts


MARKS = "\u0301\u093f\u094d\ufe0f\u20dd"
CHARACTERS = st.sampled_from([*"aé中国(.,!)$ \n", *"न\u200d\u200c\U0001f468", *MARKS])


@given(st.text(CHARACTERS, max_size=12) | st.text(max_size=12))
@pytest.mark.parametrize("characters", [False, True])
def test_words_are_the_text_and_begin_with_no_mark(characters: bool, text: str) -> None:
    found = split_words(text, characters=characters)
    assert "".join(text[a:b] for a, b in found) == "".join(text.split())
    parts = {i for i in range(len(text)) if i == 0 or text[i - 1].isspace()}
    for start, end in found:
        assert start < end
        assert start in parts or unicodedata.category(text[start])[0] != "M"


def test_punctuation_with_marks_is_parted_from_words() -> None:
    assert words("\ufeff“Hello”\u200f, का।") == ["\ufeff“", "Hello", "”\u200f", ",", "का", "।"]
