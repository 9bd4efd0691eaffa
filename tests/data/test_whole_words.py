"""Which tokens are one word."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.masking import segmenter, word_numbers
from pretune.errors import RunError
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from tests.conftest import tiny_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_vocab_folder)


def words(tokenizer: Tokenizer, text: str, kind="tokenizer") -> list[list[str]]:
    encoding = tokenizer.engine.encode(text, add_special_tokens=False)
    numbers = word_numbers(encoding, text, segmenter(kind)).tolist()
    assert numbers == sorted(numbers)
    found: dict[int, list[str]] = {}
    for number, token in zip(numbers, encoding.tokens, strict=True):
        found.setdefault(number, []).append(token)
    return list(found.values())


@given(st.text(alphabet="abz 9.-'好坏电影看不中国é\n", max_size=40))
def test_by_the_tokenizer_a_piece_continues_its_word(text: str) -> None:
    """Against the marks of WordPiece themselves."""
    tokenizer = _TOKENIZER
    for word in words(tokenizer, text):
        assert not word[0].startswith("##")
        assert all(piece.startswith("##") for piece in word[1:])


@given(st.text(alphabet="abz 9.-'好坏电影看不中国é😀\n", max_size=40))
def test_jieba_only_joins(text: str) -> None:
    plain, joined = words(_TOKENIZER, text), words(_TOKENIZER, text, "jieba")
    ends = {sum(map(len, plain[: i + 1])) for i in range(len(plain))}
    assert {sum(map(len, joined[: i + 1])) for i in range(len(joined))} <= ends


def test_jieba_finds_chinese_words(tokenizer: Tokenizer) -> None:
    assert words(tokenizer, "看中国电影") == [[c] for c in "看中国电影"]
    assert words(tokenizer, "看 中国电影", "jieba") == [["看"], ["中", "国"], ["电", "影"]]
    # Characters beyond the basic plane and what the tokenizer drops count in offsets.
    assert words(tokenizer, "😀\u0000中国 unable", "jieba")[-2:] == [
        ["中", "国"],
        ["un", "##able"],
    ]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest, **options):
        if name == "rjieba":
            raise ImportError("No module named 'rjieba'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RunError, match=r"needs rjieba") as caught:
        segmenter("jieba")
    assert "pip install 'pretune[zh]'" in str(caught.value)


def _make() -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(tiny_vocabulary()) + "\n", encoding="utf-8")
        return load_tokenizer(path)


#: For hypothesis, whose tests share no fixtures between examples.
_TOKENIZER = _make()
