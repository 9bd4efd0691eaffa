"""SentencePiece's files, against its own package."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.errors import CheckpointError
from pretune.tokenizers.sentencepiece import (
    PieceKind,
    SentencePieceFile,
    engine_of,
    read_sentencepiece,
)
from pretune.tokenizers.tokenizer import is_panic
from tests.tokenizers.pieces import LAYOUTS, lines, processor, spm_bytes

#: What sentences do not have: white space of all kinds, unknown characters, marks of SentencePiece.
ODD = [
    "",
    " ",
    "  two  spaces ",
    "a\tb\nc\n",
    "😀😀 ж 漢漢",
    "▁x ▁▁ y",
    "½①㍿\u200b",
    "aaaa----",
    "\0",
]


def read(folder: Path, data: bytes) -> SentencePieceFile:
    path = folder / "m.spm"
    path.write_bytes(data)
    return read_sentencepiece(path)


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A protocol buffer of fields: their numbers, and bytes or small whole numbers."""
    made = b""
    for number, value in fields:
        if isinstance(value, int):
            made += bytes([number << 3, value])
        else:
            made += bytes([number << 3 | 2, len(value)]) + value
    return made


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> tuple[int, bytes]:
    number = bytes([2 << 3 | 5]) + struct.pack("<f", score)
    return 1, message((1, text)) + number + message((3, kind))


UNKNOWN = piece(b"<unk>", kind=2)
SMALL = message(UNKNOWN, piece("▁a".encode(), -1.0), piece(b"b", -2.0), (2, message((3, 1))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_says_what_its_own_package_reads(tmp_path: Path, layout: str) -> None:
    file, theirs = read(tmp_path, spm_bytes(layout)), processor(spm_bytes(layout))
    ids = range(theirs.get_piece_size())
    assert [p.text for p in file.pieces] == [theirs.id_to_piece(i) for i in ids]
    assert [p.score for p in file.pieces] == [theirs.get_score(i) for i in ids]
    kinds = {PieceKind.CONTROL: theirs.is_control, PieceKind.BYTE: theirs.is_byte}
    for kind, has in kinds.items():
        assert [p.kind is kind for p in file.pieces] == [has(i) for i in ids]
    roles = theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()
    ours = (file.unknown, file.begin, file.end, file.pad)
    assert tuple(-1 if i is None else i for i in ours) == roles
    assert file.model == ("bpe" if layout == "llama" else "unigram")
    assert bool(file.charsmap) == (layout != "llama")


OPTIONS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "bytes": {"byte_fallback": True, "vocab_size": 500},
    "lower": {"normalization_rule_name": "nmt_nfkc_cf"},
    "no prefix": {"add_dummy_prefix": False},
    "all spaces": {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
    "over words": {"split_by_whitespace": False},
    "symbols": {"user_defined_symbols": ["cat", "<x>"]},
}


def same_as_theirs(tmp_path: Path, data: bytes, texts: list[str]) -> None:
    engine, theirs = engine_of(read(tmp_path, data)), processor(data)
    for text, ids in zip(texts, theirs.encode(texts), strict=True):
        assert engine.encode(text).ids == ids, text
        # It names what is unknown, which an engine leaves out.
        if theirs.unk_id() not in ids:
            assert engine.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("layout", [*LAYOUTS, *OPTIONS])
def test_an_engine_cuts_and_joins_as_their_package_does(tmp_path: Path, layout: str) -> None:
    data = spm_bytes(layout) if layout in LAYOUTS else spm_bytes("plain", **_frozen(layout))
    same_as_theirs(tmp_path, data, lines()[::40] + ODD)


def _frozen(name: str) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in OPTIONS[name].items()}


@pytest.mark.parametrize("kind", ["word", "char"])
def test_models_of_words_and_characters_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    data = spm_bytes("plain", model_type=kind)
    with pytest.raises(CheckpointError, match=rf"m\.spm: a SentencePiece .* kind '{kind}'"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"treat_whitespace_as_suffix": True}, "spaces after words"),
        ({"model_type": "bpe", "user_defined_symbols": ("cat",)}, "user-defined symbols"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(CheckpointError, match=match):
        engine_of(read(tmp_path, spm_bytes("plain", **options)))


DAMAGED = {
    "empty": (b"", "no pieces"),
    "no unknown": (message(piece(b"a")), "0 pieces for what is unknown"),
    "two unknown": (message(UNKNOWN, piece(b"u", kind=2)), "2 pieces for what is unknown"),
    "twice": (message(UNKNOWN, piece(b"a"), piece(b"a")), "there twice"),
    "no text": (message(UNKNOWN, piece(b"")), "a piece is empty"),
    "not UTF-8": (message(UNKNOWN, piece(b"\xff\xfe")), "not UTF-8"),
    "not a number": (message(UNKNOWN, piece(b"a", math.nan)), "the score nan"),
    "kind of a piece": (message(UNKNOWN, piece(b"a", kind=9)), "unknown kind 9"),
    "kind of a model": (message(UNKNOWN, (2, message((3, 9)))), "a model of the unknown kind 9"),
    "bytes": (message(UNKNOWN, piece(b"<0x00>", kind=6)), "pieces for bytes"),
    "a number for a message": (message((1, 5)), "a number where a message"),
    "cut off": (message(UNKNOWN)[:-1], "cut off"),
    "longer than it is": (b"\x0a\xff\xff\xff\xff\x0f", "a field is cut off"),
    "endless number": (b"\xff" * 20, "more than 64 bits"),
    "table": (message(UNKNOWN, (3, message((2, b"\xff\xff\xff\x7f")))), "table of replacements"),
    # A quarter of a million ways to divide it, each a copy: hours, and gibibytes.
    "an endless piece": (
        b"\x0a\xcc\xb3\x06\x0a\xc8\xb3\x06"
        + b"a" * 104904
        + message(UNKNOWN, (2, message((3, 2)))),
        "a piece of 104,904 characters, over 512",
    ),
    "not such a file": (b'{"a": 1}', "not a SentencePiece model"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    data, match = DAMAGED[name]
    with pytest.raises(CheckpointError, match=rf"m\.spm: [\s\S]*{match}"):
        read(tmp_path, data)


def test_fields_that_are_not_known_change_nothing(tmp_path: Path) -> None:
    """Newer versions may write more: at the top, in a piece, and about training."""
    odd = bytes([12 << 3, 0xFF, 0x01]) + bytes([13 << 3 | 1]) + b"12345678"
    odd += bytes([14 << 3 | 5]) + b"1234"
    number, body = piece(b"b", -2.0)
    more = message(UNKNOWN, piece("▁a".encode(), -1.0), (number, body + odd))
    more += odd + message((2, message((3, 1)) + odd))
    assert read(tmp_path, more) == read(tmp_path, SMALL)


@pytest.mark.parametrize("name", ["MOST_PIECES", "LARGEST_FILE"])
def test_a_flood_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(f"pretune.tokenizers.sentencepiece.{name}", 2)
    with pytest.raises(CheckpointError, match=r"m\.spm: [\s\S]*over 2 (bytes|pieces)"):
        read(tmp_path, SMALL)


@settings(max_examples=15)
@given(cut=st.integers(0, len(SMALL)), at=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
def test_a_damaged_file_is_an_error_or_read(
    tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, byte: int
) -> None:
    """Nothing else escapes, and nothing is made that is larger than the file."""
    changed = SMALL[:at] + bytes([byte]) + SMALL[at + 1 :]
    folder = tmp_path_factory.getbasetemp()
    for data in (SMALL[:cut], changed):
        survives(folder, data)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_model_is_an_error_or_read(tmp_path: Path, layout: str) -> None:
    whole, random_ = spm_bytes(layout), random.Random(1)
    for _ in range(200):
        data, at = bytearray(whole), random_.randrange(len(whole))
        data[at : at + random_.randrange(1, 9)] = random_.randbytes(random_.randrange(9))
        survives(tmp_path, bytes(data))


def survives(folder: Path, data: bytes) -> None:
    try:
        engine_of(read(folder, data)).encode("ab a ｆ½")
    except CheckpointError:
        pass
    except BaseException as error:
        # An engine that fails on a text is explained by `Tokenizer.encode`.
        if not is_panic(error):
            raise
