"""The tokenizer of OPUS-MT beside transformers' own, which runs SentencePiece."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import transformers

from pretune.corpus.pipeline import prepare
from pretune.errors import CheckpointError
from pretune.tokenizers.charsmap import Charsmap
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.sentencepiece import read_sentencepiece
from tests.tasks.opus import SOURCES, TARGETS, write_tokenizer

#: What SentencePiece changes, what it does not know, and what Marian takes as a token.
ODD = [
    "Ａ ﬁne  “dog”\t®…  ",
    "cafe\u0301 e\u0308\u0301 ½",
    "»🌘‵🎷薮崩¹\u200c雏💎\ufeff⁇～",
    "\u200a҈\u3000‹ｓ🌃 ",
    ">>deu<< A dog.",
    ">>xyz<<A dog.",
    ">>A dog",
    "A </s> dog <unk><pad>.",
    "<s> a</s>>>deu<<b",
    "Ein Hund läuft",
    " ",
    "",
]


@pytest.fixture(
    scope="module",
    params=["unigram", *(pytest.param(own, marks=pytest.mark.slow) for own in ("bpe", "separate"))],
)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opus")
    separate = request.param == "separate"
    write_tokenizer(place, kind="unigram" if separate else request.param, separate=separate)
    return place


def theirs_of(folder: Path) -> Any:
    theirs = transformers.MarianTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "MarianTokenizer"
    return theirs


def test_ids_and_texts_are_those_of_transformers(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    texts = [*SOURCES, *TARGETS, *ODD]
    assert [own.ids for own in ours.encode(texts)] == theirs(texts)["input_ids"]
    written = theirs(text_target=texts)["input_ids"]
    assert [own.ids for own in ours.written.encode(texts)] == written
    bare = ours.written.encode_bare(texts, offsets=False)
    assert [[*own.ids, 0] for own in bare] == written
    assert [ours.written.decode(ids).strip() for ids in written] == [
        theirs.decode(ids, skip_special_tokens=True) for ids in written
    ]


@pytest.mark.slow
def test_ids_of_many_texts_are_those_of_transformers(folder: Path, data_folder: Path) -> None:
    files = ("multi30k-en-de/val.en", "multi30k-en-de/val.de", "wikitext-2/valid.txt")
    texts = [
        line
        for name in (*files, "tatoeba-zh-en/train.tsv")
        for line in (data_folder / name).read_text(encoding="utf-8").split("\n")[:2000]
    ]
    drawn = random.Random(0)
    blocks = ((32, 127), (160, 592), (768, 880), (880, 1280), (0x2000, 0x2070), (0x3000, 0x3100))
    blocks += ((0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xFF00, 0xFFEF), (0x1F300, 0x1F600), (9, 33))
    texts += [
        "".join(chr(drawn.randrange(*drawn.choice(blocks))) for _ in range(drawn.randrange(1, 40)))
        for _ in range(2000)
    ]
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    assert [own.ids for own in ours.encode(texts)] == theirs(texts)["input_ids"]


def test_places_are_those_of_the_text_as_it_stands(folder: Path) -> None:
    ours, text = load_tokenizer(folder), ">>deu<< Ａ ﬁne  dog</s>s"
    (encoded,) = ours.encode([text])
    shown = [text[start:end] for start, end in encoded.offsets]
    assert (shown[0], shown[-1], "</s>" in shown) == (">>deu<<", "", True)
    known = [piece for piece in shown if piece in ("Ａ", " Ａ", "ﬁ", "og", "d")]
    assert known
    ends = [end for _, end in encoded.offsets[:-1]]
    assert ends == sorted(ends)
    assert ends[-1] == len(text)


def test_names_of_special_tokens_are_text_where_a_stranger_wrote_them(folder: Path) -> None:
    ours = load_tokenizer(folder)
    (plain,), (literal,) = ours.encode(["a</s>"]), ours.encode(["a</s>"], literal=True)
    assert plain.ids.count(0) == 2
    assert literal.ids.count(0) == 1
    (asked,) = ours.encode([">>deu<< a"], literal=True)
    assert ours.tokens(asked.ids)[0] == ">>deu<<"


def test_what_is_saved_opens_in_both(folder: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(folder)
    ours.save(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    wanted = [own.ids for own in ours.encode(SOURCES + ODD)]
    assert [own.ids for own in load_tokenizer(tmp_path).encode(SOURCES + ODD)] == wanted
    assert theirs_of(tmp_path)(SOURCES + ODD)["input_ids"] == wanted
    assert ours.cuts_as(load_tokenizer(tmp_path))
    assert not ours.cuts_as(ours.written)


def test_the_longest_key_of_the_table_counts(folder: Path) -> None:
    table = Charsmap(read_sentencepiece(folder / "source.spm").charsmap)
    text, places = table.apply("e\u0301ﬁ\u3000x")
    assert (text, places) == ("éfi x", [0, 2, 2, 3, 4, 5])
    assert table.apply("plain text") == ("plain text", None)
    assert Charsmap(b"").apply("ﬁ") == ("ﬁ", None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("target.spm", None, r"target\.spm: missing"),
        ("vocab.json", b"[1]", r"vocab\.json: expected an object"),
        ("vocab.json", b'{"a": 0, "b": 0}', "the same number"),
        ("vocab.json", b'{"a": 0}', "lacks <unk> and </s> and <pad>"),
        ("vocab.json", b'{"a": -1}', "a number for each token"),
        ("source.spm", b"\xff\xff", r"source\.spm: not a SentencePiece model"),
    ],
)
def test_damaged_files_are_named(
    name: str, content: bytes | None, said: str, folder: Path, tmp_path: Path
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load_tokenizer(tmp_path)


def test_no_other_model_and_no_corpus_gets_it(folder: Path, tmp_path: Path) -> None:
    import pretune

    with pytest.raises(CheckpointError, match="the tokenizer of a translator"):
        pretune.load("bert-tiny", bare=True, tokenizer=folder)
    (tmp_path / "a.txt").write_text("a text\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="the tokenizer of a translator"):
        prepare([tmp_path / "a.txt"], folder, tmp_path / "corpus")


def test_it_is_read_by_its_class_even_beside_another_file(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}), encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert load_tokenizer(tmp_path).cutter is not None
