"""Rules in a stranger's `tokenizer.json` that blow a text up are refused before any is read."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from pretune.errors import CheckpointError
from pretune.tokenizers.load import load_tokenizer


def charsmap(text: str) -> str:
    """A table of SentencePiece with an empty trie and one text."""
    return base64.b64encode(bytes(4) + text.encode() + b"\0").decode()


def write(folder: Path, normalizer: Any = None, decoder: Any = None) -> Path:
    engine = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))  # noqa: S106
    parts = json.loads(engine.to_str())
    for name, part in (("normalizer", normalizer), ("decoder", decoder)):
        if part is not None:
            parts[name] = part if isinstance(part, dict) else json.loads(part.__getstate__())
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    return folder


TEN = normalizers.Replace("a", "aaaaaaaaaa")
BLOWN_UP = {
    "chained": normalizers.Sequence([TEN, TEN, TEN]),
    "nested": normalizers.Sequence([TEN, normalizers.Sequence([TEN, TEN])]),
    "long": normalizers.Replace("a", "a" * 101),
    "regex": normalizers.Replace(Regex("a|bb"), "a" * 101),
    "regex of its own": normalizers.Replace(Regex(r"\p{L}"), "a" * 101),
    "between characters": normalizers.Replace(Regex("(?=a)"), "a" * 100),
    "nothing": normalizers.Replace("", "a" * 100),
    "wide characters": normalizers.Replace("a", "\u2581" * 34),
}


@pytest.mark.parametrize("name", BLOWN_UP)
def test_a_normalizer_that_blows_texts_up_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, BLOWN_UP[name])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: normalizer: its rules can make"):
        load_tokenizer(folder)


def test_a_decoder_that_blows_texts_up_is_refused(tmp_path: Path) -> None:
    ten = decoders.Replace("a", "aaaaaaaaaa")
    folder = write(tmp_path, decoder=decoders.Sequence([ten, decoders.Fuse(), ten, ten]))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: decoder: its rules can make"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "normalizer",
    [
        # Llama's, T5's, ALBERT's and CLIP's; and placeholders for tweets.
        normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), "\u2581")]),
        normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]),
        normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")]),
        normalizers.Sequence(
            [
                normalizers.Replace(Regex(r"http\S+"), "<url>"),
                normalizers.Replace(Regex(r"@\w+"), "<user>"),
                normalizers.Replace(Regex(r"\S+@\S+"), "<email>"),
                normalizers.Replace(Regex(r"\d+"), "<number>"),
            ]
        ),
    ],
)
def test_what_is_published_is_read(tmp_path: Path, normalizer: Any) -> None:
    assert load_tokenizer(write(tmp_path, normalizer)).vocab_size == 2


@pytest.mark.parametrize(("text", "fine"), [("x" * 33, True), ("x" * 400, False)])
def test_the_texts_of_a_table_of_sentencepiece_count(text: str, fine: bool, tmp_path: Path) -> None:
    """NFKC makes 33 bytes of 3: its longest is U+FDFA."""
    from pretune.tokenizers.growth import refuse_growth

    parts = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(text)}}
    if fine:
        refuse_growth(tmp_path, parts)
        return
    with pytest.raises(CheckpointError, match="normalizer: its rules can make"):
        refuse_growth(tmp_path, parts)
