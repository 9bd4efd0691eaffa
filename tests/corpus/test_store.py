"""Opening a corpus that is damaged, or is none."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretune.corpus.pipeline import Settings, prepare
from pretune.corpus.store import Corpus, StoredDocuments
from pretune.errors import DataError
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.features import featurize
from pretune.tokenizers.load import load_tokenizer


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, corpus_file: Path, bpe_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "c"
    prepare([corpus_file], bpe_folder, folder, Settings(shard_tokens=10_000), workers=1)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "c")
    return tmp_path / "c"


@pytest.mark.parametrize("name", ["tokens.bin", "documents.npy", "sentences.npy"])
def test_cut_grown_missing_changed(folder: Path, name: str) -> None:
    path = folder / f"shard-00001.{name}"
    raw = path.read_bytes()
    for damaged in (raw[:-8], raw + b"\0" * 8, b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"shard-00001\.{name}: damaged \("):
            Corpus.open(folder)
    path.write_bytes(raw[:-2] + bytes([raw[-2] ^ 1]) + raw[-1:])
    if name != "sentences.npy":  # there it is a position out of order, which is seen at once
        Corpus.open(folder)
    with pytest.raises(DataError, match=rf"shard-00001\.{name}: damaged \(its SHA-256"):
        Corpus.open(folder, verify=True)
    path.unlink()
    with pytest.raises(DataError, match=rf"shard-00001\.{name}: missing"):
        Corpus.open(folder)


def test_header_that_lies(folder: Path) -> None:
    path = folder / "shard-00000.documents.npy"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"'<i8'", b"'|O8'"))
    with pytest.raises(DataError, match=r"documents\.npy: damaged"):
        Corpus.open(folder)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dtype": lambda m: m.update(dtype="float64"),
    "name": lambda m: m["shards"][0].update(name="../shard-00000"),
    "tokens": lambda m: m["shards"][0].update(tokens=-1),
    "totals": lambda m: m["totals"].update(tokens=1),
    "shards": lambda m: m.update(shards=None),
    "sha256": lambda m: m["tokenizer"].update(sha256="x"),
    "vocab_size": lambda m: m.pop("vocab_size"),
    "version": lambda m: m.update(version=2),
    "size": lambda m: m["shards"][0]["files"][".documents.npy"].pop("size"),
    "settings": lambda m: m.pop("settings"),
    "sources": lambda m: m.pop("sources"),
    "source": lambda m: m["sources"][0].pop("size"),
    "split": lambda m: m.pop("split"),
    "reading": lambda m: m["reading"].pop("dropped"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_manifest_that_lies(folder: Path, change: str) -> None:
    manifest = json.loads((folder / "corpus.json").read_text())
    CHANGES[change](manifest)
    (folder / "corpus.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"corpus\.json: (damaged|format)"):
        Corpus.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"format": 1}'])
def test_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / "corpus.json").write_text(text)
    with pytest.raises(DataError, match=r"corpus\.json: "):
        Corpus.open(folder)


def rewrite(folder: Path, end: str, change: Callable[[Any], Any]) -> None:
    """Change a file of the first shard, and all that is said about it."""
    path = folder / f"shard-00000{end}"
    if end == ".tokens.bin":
        values = np.fromfile(path, "<u2")
        change(values)
        values.tofile(path)
    else:
        values = np.load(path)
        change(values)
        np.save(path, values)
    manifest = json.loads((folder / "corpus.json").read_text())
    described = manifest["shards"][0]["files"][end]
    assert described["size"] == path.stat().st_size
    described["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "corpus.json").write_text(json.dumps(manifest))


DOCUMENTS, SENTENCES = ".documents.npy", ".sentences.npy"


@pytest.mark.parametrize(
    ("end", "place", "value", "said"),
    [
        (DOCUMENTS, (0, 0), -50, "do not rise from 0"),
        (DOCUMENTS, (0, 0), 1, "do not rise from 0"),
        (DOCUMENTS, (5, 0), 10**9, "do not rise from 0"),
        (DOCUMENTS, (-1, 0), 10**9, "do not rise from 0"),
        (SENTENCES, 1, 0, "do not rise from 0"),
        (SENTENCES, -1, 30_000, "do not rise from 0"),
    ],
)
def test_positions_of_a_stranger(
    folder: Path, end: str, place: Any, value: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(folder, end, lambda values: values.__setitem__(place, value))
    for chunk in (1, 1 << 22):
        monkeypatch.setattr("pretune.corpus.store._CHUNK", chunk)
        with pytest.raises(DataError, match=rf"shard-00000\{end}: damaged \(.*{said}"):
            Corpus.open(folder)


def test_a_document_of_a_stranger_inside_a_sentence(folder: Path) -> None:
    first = np.load(folder / f"shard-00000{SENTENCES}")
    place = next(i for i in range(len(first)) if first[i + 1] > first[i] + 1)

    def move(documents: Any) -> None:
        number = int(np.searchsorted(documents[:, 0], first[place], side="right"))
        documents[number, 0] = first[place] + 1

    rewrite(folder, DOCUMENTS, move)
    with pytest.raises(DataError, match="a document begins inside a sentence"):
        Corpus.open(folder)


def test_tokens_of_a_stranger(folder: Path) -> None:
    rewrite(folder, ".tokens.bin", lambda values: values.__setitem__(7, 60_000))
    Corpus.open(folder)  # all tokens are read where that is asked for, and before they are used
    said = r"shard-00000\.tokens\.bin: damaged \(the token 60,000"
    with pytest.raises(DataError, match=said):
        Corpus.open(folder, verify=True)
    manifest = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps({**manifest, "vocab_size": 65_536}))
    documents = StoredDocuments.open(folder)
    task = CausalLm(CausalLmOptions(max_length=8))
    with pytest.raises(DataError, match=said):
        featurize(task, documents, load_tokenizer(documents.corpus.tokenizer_folder))


def test_another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(DataError, match="not the tokenizer that made this corpus"):
        Corpus.open(folder)


def test_places(sound: Path) -> None:
    corpus = Corpus.open(sound)
    lengths = corpus.lengths()
    shard = np.concatenate([np.fromfile(p, "<u2") for p in sorted(sound.glob("*.tokens.bin"))])
    ends = np.cumsum(lengths)
    assert len(list(sound.glob("*.tokens.bin"))) > 1
    for i in range(len(corpus)):
        assert np.array_equal(corpus.document(i), shard[ends[i] - lengths[i] : ends[i]])
    for wrong in (-1, len(corpus)):
        with pytest.raises(IndexError):
            corpus.document(wrong)
    with pytest.raises(ValueError, match="read-only"):
        corpus.document(0)[0] = 1


def test_sent_to_another_process_it_is_small(sound: Path) -> None:
    corpus = Corpus.open(sound)
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000
    assert pickle.loads(sent).fingerprint() == corpus.fingerprint()  # noqa: S301


def test_fingerprint_is_of_the_tokens(
    sound: Path, tmp_path: Path, corpus_file: Path, bpe_folder: Path
) -> None:
    copy = tmp_path / "copy.txt"
    shutil.copy(corpus_file, copy)
    prepare([copy], bpe_folder, tmp_path / "same", Settings(shard_tokens=10_000), workers=1)
    with copy.open("a") as handle:
        handle.write("\none more\n")
    prepare([copy], bpe_folder, tmp_path / "other", Settings(shard_tokens=10_000), workers=1)
    first, same, other = (Corpus.open(f) for f in (sound, tmp_path / "same", tmp_path / "other"))
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()
