"""A bare `vocab.txt` against transformers' tokenizer and one that is too simple to be wrong."""

from __future__ import annotations

import string
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import BertTokenizer

from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CASED_VOCABULARY = [
    *SPECIAL,
    *string.ascii_letters,
    *("##" + letter for letter in string.ascii_letters),
    *("Good", "good", "É", "##é", "ä", "中", "国", ".", "$"),
]

CHARACTERS = st.one_of(
    st.sampled_from(string.ascii_letters + string.digits + "   "),
    st.sampled_from(string.punctuation),
    st.sampled_from("éÉñüÅøßİıſﬁœ"),
    st.sampled_from("\u0301\u0308\u0327\u0345"),  # combining marks
    st.sampled_from("好坏电影看不中国豈㐀龍"),
    st.sampled_from("。，！？「」《》—…“”·"),
    st.sampled_from("ａＺ９カﾀ한국ΣσςЯя"),
    st.sampled_from("😀👩\u200d🔬🇨🇳\ufe0f"),
    st.sampled_from("\t\n\r\x00\x07\x0b\x1f\x7f\x85\xa0\xad\u2028\u200b\u3000\ufeff\ufffd"),
)
TEXTS = st.lists(CHARACTERS, max_size=40).map("".join)


def is_chinese(character: str) -> bool:
    ranges = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF))
    return any(low <= ord(character) <= high for low, high in ranges)


def is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def basic_words(text: str, lowercase: bool) -> list[str]:
    """BERT's basic tokenization: clean, space out Chinese, lower and strip accents, split."""
    cleaned = ""
    for character in text:
        if character in "\t\n\r":
            cleaned += " "
        elif character == "\ufffd" or unicodedata.category(character).startswith("C"):
            continue
        elif is_chinese(character):
            cleaned += f" {character} "
        else:
            cleaned += character
    if lowercase:
        decomposed = unicodedata.normalize("NFD", cleaned)
        bare = [c for c in decomposed if unicodedata.category(c) != "Mn"]
        cleaned = "".join(c.lower() for c in bare)
    spaced = "".join(f" {c} " if is_punctuation(c) else c for c in cleaned)
    return spaced.split()


def pieces(word: str, vocabulary: set[str]) -> list[str]:
    """Greedy longest match; a word that cannot be spelled is one [UNK]."""
    if len(word) > 100:
        return ["[UNK]"]
    found: list[str] = []
    rest = word
    while rest:
        prefix = "##" if found else ""
        ends = (n for n in range(len(rest), 0, -1) if prefix + rest[:n] in vocabulary)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        found.append(prefix + rest[:end])
        rest = rest[end:]
    return found


def slow_tokens(text: str, vocabulary: set[str], lowercase: bool) -> list[str]:
    words = basic_words(text, lowercase)
    return ["[CLS]", *(piece for word in words for piece in pieces(word, vocabulary)), "[SEP]"]


def ours(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.tokens(tokenizer.encode([text])[0].ids)


@cache
def vocabulary_of(folder: Path) -> set[str]:
    return set((folder / "vocab.txt").read_text(encoding="utf-8").split("\n"))


@pytest.fixture(scope="module")
def cased_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cased")
    (folder / "vocab.txt").write_text("\n".join(CASED_VOCABULARY) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["uncased", "cased"])
def setting(
    request: pytest.FixtureRequest, tiny_vocab_folder: Path, cased_folder: Path
) -> tuple[Path, Tokenizer, BertTokenizer, bool]:
    """The folder, our tokenizer, transformers' one, and whether they lowercase."""
    lowercase = request.param == "uncased"
    folder = tiny_vocab_folder if lowercase else cased_folder
    theirs = BertTokenizer.from_pretrained(str(folder), do_lower_case=lowercase)
    return folder, load_tokenizer(folder), theirs, lowercase


@given(text=TEXTS)
def test_tokens_are_those_of_the_slow_wordpiece(setting, text):
    folder, tokenizer, _, lowercase = setting
    assume(not any(token in text for token in SPECIAL))
    assert ours(tokenizer, text) == slow_tokens(text, vocabulary_of(folder), lowercase)


@given(text=TEXTS)
def test_ids_are_those_of_transformers(setting, text):
    _, tokenizer, theirs, _ = setting
    assert tokenizer.encode([text])[0].ids == theirs(text)["input_ids"]


@given(first=TEXTS, second=TEXTS)
def test_pairs_are_those_of_transformers(setting, first, second):
    _, tokenizer, theirs, _ = setting
    encoded = tokenizer.encode([first], [second])[0]
    expected = theirs([first], [second])  # as lists: it takes a bare "" for no second text
    assert [encoded.ids] == expected["input_ids"]
    assert [encoded.segments] == expected["token_type_ids"]


@given(text=TEXTS)
def test_offsets_point_at_the_text_a_token_came_from(setting, text):
    _, tokenizer, _, lowercase = setting
    assume(not any(token in text for token in SPECIAL))
    encoded = tokenizer.encode([text])[0]
    tokens = tokenizer.tokens(encoded.ids)[1:-1]
    for token, (start, end) in zip(tokens, encoded.offsets[1:-1], strict=True):
        if token != "[UNK]":  # noqa: S105 - a token of text
            assert "".join(basic_words(text[start:end], lowercase)) == token.removeprefix("##")


@given(text=TEXTS)
def test_offsets_ascend_within_the_text(setting, text):
    _, tokenizer, _, _ = setting
    offsets = tokenizer.encode([text])[0].offsets[1:-1]
    places = [place for offset in offsets for place in offset]
    assert places == sorted(places)
    assert all(0 <= place <= len(text) for place in places)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("Good FILM!", ["good", "film", "!"]),
        ("gööd", ["good"]),
        ("电影好看", ["电", "影", "好", "看"]),
        ("a电影b", ["a", "电", "影", "b"]),
        ("the\x00\u200bgood\tfilm\n", ["the", "##g", "##o", "##o", "##d", "film"]),
        ("😀", ["[UNK]"]),
        ("a😀 b", ["[UNK]", "b"]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_known_tokenizations(tiny_vocab_folder, text, expected):
    tokenizer = load_tokenizer(tiny_vocab_folder)
    assert ours(tokenizer, text)[1:-1] == expected


@pytest.mark.parametrize(("length", "unknown"), [(100, False), (101, True)])
def test_a_word_of_over_100_characters_is_unknown(tiny_vocab_folder, length, unknown):
    tokens = ours(load_tokenizer(tiny_vocab_folder), "a" * length)
    assert (tokens[1:-1] == ["[UNK]"]) is unknown


def test_special_tokens_in_a_text_are_those_tokens_as_in_transformers(setting):
    _, tokenizer, theirs, _ = setting
    text = "a [MASK] b[SEP]c"
    assert tokenizer.encode([text])[0].ids == theirs(text)["input_ids"]


def test_chinese_characters_stay_joined_where_the_settings_say_so(tiny_vocab_folder, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((tiny_vocab_folder / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenize_chinese_chars": false}')
    assert ours(load_tokenizer(tmp_path), "电影")[1:-1] == ["[UNK]"]


@pytest.mark.parametrize(
    ("name", "lowercase"), [("bert-base-uncased", True), ("bert-base-chinese", True)]
)
class TestPublishedVocabularies:
    TEXTS = (
        "The Weißbier cost $4.50 -- naïve façade, isn't it?",
        "中华人民共和国成立于1949年10月1日。Hello, WORLD! ABC",
        "Σίσυφος Ёлка 서울 東京タワー ｆｕｌｌ　ｗｉｄｔｈ",
        "tabs\tand\u00a0spaces\u2003and\u200bzero-width 👩\u200d🔬",
    )

    def test_case_is_told_from_the_vocabulary(self, data_folder, name, lowercase):
        tokenizer = load_tokenizer(data_folder / "vocab" / name)
        assert tokenizer.settings["do_lower_case"] is lowercase

    def test_tokens_are_those_of_the_slow_wordpiece(self, data_folder, name, lowercase):
        folder = data_folder / "vocab" / name
        tokenizer = load_tokenizer(folder)
        for text in self.TEXTS:
            assert ours(tokenizer, text) == slow_tokens(text, vocabulary_of(folder), lowercase)

    def test_ids_are_those_of_transformers(self, data_folder, name, lowercase):
        folder = data_folder / "vocab" / name
        theirs = BertTokenizer.from_pretrained(str(folder), do_lower_case=lowercase)
        ids = [encoded.ids for encoded in load_tokenizer(folder).encode(self.TEXTS)]
        assert ids == theirs(list(self.TEXTS))["input_ids"]
