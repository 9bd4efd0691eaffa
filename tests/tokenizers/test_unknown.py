"""Vocabularies without [UNK], and patterns that take too many steps."""

from __future__ import annotations

import re
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from pretune.corpus.encode import Cleaning, Encoder, EncoderSettings
from pretune.corpus.pipeline import prepare
from pretune.data.readers.files import read
from pretune.errors import CheckpointError, DataError
from pretune.inspection.describe import describe
from pretune.render.experiment_views import corpus_view
from pretune.tokenizers.figures import measure_tokenizer
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer
from pretune.tokenizers.unknown import DroppedCharacters

#: "a" and "b" alone; a BPE drops all else, the others refuse it.
DROPS = models.BPE({"a": 0, "b": 1}, [])
REFUSES = {
    "wordpiece": models.WordPiece({"a": 0, "b": 1, "##b": 2}, unk_token="[UNK]"),  # noqa: S106
    "words": models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"),  # noqa: S106
    "unigram": models.Unigram([("a", -1.0), ("b", -2.0)], None, False),
}


def engine(model: models.Model) -> RustTokenizer:
    made = RustTokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def write(folder: Path, made: RustTokenizer) -> Path:
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("a b a\n\nab éa é\n", encoding="utf-8")
    return path


def test_characters_that_a_bpe_drops_are_counted() -> None:
    made = engine(DROPS)
    made.normalizer = normalizers.Replace("-", "")
    dropped = DroppedCharacters(made)
    assert dropped("a é\tb éx - ") == Counter({"é": 2, "x": 1})
    assert measure_tokenizer(Tokenizer(made, {}), ["a é", "b"]).unknown == 1 / 3


@pytest.mark.parametrize(
    "made",
    [
        train_tokenizer(["a b"], "bpe", 257).engine,
        train_tokenizer(["a b"], "char").engine,
        engine(models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>")),  # noqa: S106
    ],
    ids=["bytes", "characters", "unknown"],
)
def test_other_vocabularies_drop_nothing(made: RustTokenizer) -> None:
    assert not DroppedCharacters(made)("é 😀")


def test_prepare_counts_what_is_dropped(tmp_path: Path, text: Path) -> None:
    made = prepare([str(text)], str(write(tmp_path / "t", engine(DROPS))), tmp_path / "c")
    assert (made.train["reading"]["unknown"], made.train["reading"]["lost"]) == (0, 2)
    assert made.train["totals"]["tokens"] == 6
    console = Console(width=100, file=StringIO())
    console.print(corpus_view(made))
    assert isinstance(console.file, StringIO)
    # 2 of the 12 characters of both documents.
    assert re.search(r"characters dropped\W+16\.67%", console.file.getvalue())


def test_describe_counts_what_is_dropped_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na é,x\nb,y\n", encoding="utf-8")
    tokenizer = load_tokenizer(write(tmp_path / "t", engine(DROPS)))
    (facts,) = describe([read(path)], tokenizer=tokenizer).files
    assert facts.unknown is not None
    assert (facts.unknown.lost, facts.unknown.tokens) == (1, 3)
    assert facts.unknown.pieces == Counter("é")
    assert facts.unknown_places == {"é": "line 2"}


@pytest.mark.parametrize("kind", REFUSES)
def test_prepare_names_what_a_vocabulary_without_unk_lacks(
    tmp_path: Path, text: Path, kind: str
) -> None:
    folder = write(tmp_path / "t", engine(REFUSES[kind]))
    with pytest.raises(DataError, match=r"characters outside of the vocabulary, such as '(é|ab)'"):
        prepare([str(text)], str(folder), tmp_path / "c", workers=1)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("kind", REFUSES)
def test_describe_names_the_place_that_a_vocabulary_without_unk_cannot_encode(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,x\nb é,y\n", encoding="utf-8")
    folder = write(tmp_path / "t", engine(REFUSES[kind]))
    with pytest.raises(DataError, match=r"data\.csv, line 3: .*such as 'é'"):
        describe([read(path)], tokenizer=load_tokenizer(folder))


def test_a_pattern_that_takes_too_many_steps_is_named(tmp_path: Path) -> None:
    made = engine(REFUSES["words"])
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokenizer = load_tokenizer(write(tmp_path, made))
    text = "a" * 40 + "c"
    for encode in (tokenizer.encode, tokenizer.encode_bare):
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizer fails on"):
            encode([text])
    settings = EncoderSettings(made.to_str(), "uint16", Cleaning(), origin=tokenizer.origin)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizer fails on"):
        Encoder(settings)([text])
