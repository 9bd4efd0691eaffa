"""Rules in a stranger's `tokenizer.json` that blow a text up are refused before any is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from pretune.errors import CheckpointError
from pretune.tokenizers.load import load_tokenizer


def charsmap(entries: dict[str, str]) -> bytes:
    """SentencePiece's table of replacements: a trie as a double array, and the texts."""
    units, taken, bases = [0] * 1024, {0}, set[int]()
    texts = b"".join(text.encode() + b"\0" for text in entries.values())
    ends = {key.encode(): texts.index(text.encode() + b"\0") for key, text in entries.items()}

    def place(node: int, prefix: bytes) -> None:
        size = len(prefix)
        labels = sorted({key[size] for key in ends if key.startswith(prefix) and len(key) > size})
        spots = [*([0] if prefix in ends else []), *labels]
        free = (b for b in range(256, 768) if b not in bases)
        base = next(b for b in free if not {b ^ c for c in spots} & taken)
        bases.add(base)
        taken.update(base ^ c for c in spots)
        units[node] |= (node ^ base) << 10 | (prefix in ends) << 8
        if prefix in ends:
            units[base] = 1 << 31 | ends[prefix]
        for label in labels:
            units[base ^ label] = label
        for label in labels:
            place(base ^ label, prefix + bytes([label]))

    place(0, b"")
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts


def write(folder: Path, normalizer: Any = None, **others: Any) -> Path:
    engine = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))  # noqa: S106
    parts = json.loads(engine.to_str())
    for name, part in {"normalizer": normalizer, **others}.items():
        if part is not None:
            parts[name] = part if isinstance(part, dict) else json.loads(part.__getstate__())
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    return folder


#: Patterns of which Python knows nothing, or another thing.
PATTERNS = [r"\K", r"(\p{L}*)", "b{2}{0}", r"\y", "b{2}?", "(?x) ", "(?~b)", "[a[b]]*", "(?i:b)|"]
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


TABLES = {
    # NFKC makes 33 bytes of 3: its longest is U+FDFA.
    "as published": ({"\ufdfa": "x" * 33, "a": "b", "ab": "cd"}, 1, True),
    "long": ({"\ufdfa": "x" * 303}, 1, False),
    "longer than keys": ({"b" * 20: "x" * 1800}, 1, False),
    "of one byte": ({"b": "x" * 33, "abc": "y"}, 1, True),
    "chained": ({"ab": "c", "a": "aaa"}, 5, False),
    "hardly longer": ({"ab": "abc"}, 5, True),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_texts_of_a_table_of_sentencepiece_count(name: str, tmp_path: Path) -> None:
    entries, times, fine = TABLES[name]
    table = normalizers.Precompiled(charsmap(entries))
    # The library replaces single characters, so the table is as it expects it.
    single = [key for key in entries if len(key) == 1]
    assert [table.normalize_str(key) for key in single] == [entries[key] for key in single]
    folder = write(tmp_path, normalizers.Sequence([table] * times))
    if fine:
        assert load_tokenizer(folder).vocab_size == 2
        return
    with pytest.raises(CheckpointError, match="normalizer: its rules can make"):
        load_tokenizer(folder)


@pytest.mark.parametrize("regex", PATTERNS)
def test_a_pattern_that_only_oniguruma_knows_may_match_nothing(tmp_path: Path, regex: str) -> None:
    """A rule that adds a character between two, a few times over."""
    rule = normalizers.Replace(Regex(regex), "b")
    folder = write(tmp_path, normalizers.Sequence([rule] * 9))
    with pytest.raises(CheckpointError, match="normalizer: its rules can make"):
        load_tokenizer(folder)


SPLIT, SPACED = pre_tokenizers.Split(Regex("."), "isolated"), pre_tokenizers.ByteLevel()


@pytest.mark.parametrize(
    ("step", "parts"),
    [
        ("pre_tokenizer", pre_tokenizers.Sequence([SPLIT, *[SPACED] * 4])),
        ("pre_tokenizer", pre_tokenizers.Sequence([SPLIT, *[pre_tokenizers.Metaspace()] * 4])),
        ("normalizer", normalizers.Sequence([normalizers.ByteLevel()] * 7)),
        ("normalizer", normalizers.Prepend("a" * 100)),
        ("decoder", decoders.Sequence([decoders.BPEDecoder(suffix="")] * 7)),
    ],
)
def test_other_rules_that_make_texts_longer_count_too(
    tmp_path: Path, step: str, parts: Any
) -> None:
    folder = write(tmp_path, **{step: parts})
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: {step}: its rules can make"):
        load_tokenizer(folder)


def template(*pieces: str, ids: int = 1) -> dict[str, Any]:
    entries = [
        {"Sequence": {"id": piece[1], "type_id": 0}}
        if piece[0] == "$"
        else {"SpecialToken": {"id": piece, "type_id": 0}}
        for piece in pieces
    ]
    pair = [*entries, {"Sequence": {"id": "B", "type_id": 0}}]
    special = {"id": "a", "ids": [0] * ids, "tokens": ["a"] * ids}
    named = {"a": special} if "a" in pieces else {}
    return {"type": "TemplateProcessing", "single": entries, "pair": pair, "special_tokens": named}


@pytest.mark.parametrize(
    "processor",
    [
        template(*["$A"] * 101),
        template(*["a"] * 100, "$A"),
        template("a", "$A", ids=100),
        {"type": "Sequence", "processors": [template("$A", "$A")] * 7},
    ],
)
def test_templates_that_blow_texts_up_are_refused(tmp_path: Path, processor: Any) -> None:
    folder = write(tmp_path, post_processor=processor)
    with pytest.raises(CheckpointError, match=r"post_processor: its templates can make over 100"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "processor",
    [
        template("a", "$A", "a"),
        {"type": "Sequence", "processors": [template("$A"), template("a", "$A", ids=9)]},
        processors.RobertaProcessing(("a", 0), ("a", 0)),
    ],
)
def test_templates_as_published_are_read(tmp_path: Path, processor: Any) -> None:
    assert load_tokenizer(write(tmp_path, post_processor=processor)).vocab_size == 2


@pytest.mark.parametrize(("longest", "fine"), [(200, True), (10**9, False)])
def test_words_without_end_are_refused(tmp_path: Path, longest: int, fine: bool) -> None:
    known = {"[UNK]": 0, "a": 1}
    model = models.WordPiece(known, unk_token="[UNK]", max_input_chars_per_word=longest)  # noqa: S106
    (tmp_path / "tokenizer.json").write_text(Tokenizer(model).to_str())
    if fine:
        assert load_tokenizer(tmp_path).vocab_size == 2
        return
    with pytest.raises(CheckpointError, match="max_input_chars_per_word is 1,000,000,000"):
        load_tokenizer(tmp_path)


def test_a_mark_of_parts_of_words_is_short(tmp_path: Path) -> None:
    model = models.WordPiece({"[UNK]": 0}, unk_token="[UNK]", continuing_subword_prefix="#" * 101)  # noqa: S106
    (tmp_path / "tokenizer.json").write_text(Tokenizer(model).to_str())
    with pytest.raises(CheckpointError, match="continuing_subword_prefix has over 100"):
        load_tokenizer(tmp_path)
