"""Object storage as `memory://`, which is fsspec's own; S3 itself is in test_s3.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretune.checkpoints.source import find_source, find_tokenizer
from pretune.corpus.documents import ReadingOptions, find_sources
from pretune.corpus.pipeline import Settings, prepare
from pretune.corpus.store import Corpus, is_corpus
from pretune.data.readers.files import read, read_parts
from pretune.errors import DataError, PretuneError
from pretune.recipe.recipe import Recipe
from pretune.storage import object_store
from pretune.storage.object_store import (
    SENT,
    is_url,
    listed,
    local_copy,
    local_folder,
    look_up,
    opened,
    send_folder,
    url_of,
)
from tests.corpus.conftest import contents

ROWS = b"text,label\na good film,1\na bad film,0\n"


@pytest.mark.parametrize(
    ("place", "whether"),
    [
        ("s3://bucket/a", True),
        (Path("s3://bucket/a"), True),
        ("hf://datasets/o/n/f.csv", True),
        ("s3.csv", False),
        ("C:\\s3:", False),
        ("https://x/y", False),
        ({"a": 1}, False),
    ],
)
def test_what_is_in_object_storage(place: object, whether: bool) -> None:
    assert is_url(place) is whether


def test_a_path_gets_its_slashes_back() -> None:
    assert url_of(Path("s3://bucket/a/")) == "s3://bucket/a"


def test_a_table_is_read_as_from_the_disk(store: Any, tmp_path: Path) -> None:
    store.pipe_file("/bucket/train.csv", ROWS)
    (tmp_path / "train.csv").write_bytes(ROWS)
    there, here = read("memory://bucket/train.csv"), read(tmp_path / "train.csv")
    assert there.rows == here.rows
    assert [part.rows for part in read_parts("memory://bucket/train.csv", 1)] == [
        [row] for row in here.rows
    ]


def test_a_copy_is_made_once_and_again_when_the_object_changes(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pipe_file("/bucket/train.csv", ROWS)
    first = local_copy("memory://bucket/train.csv")
    monkeypatch.setattr(object_store, "opened", None)  # nothing is fetched
    assert local_copy("memory://bucket/train.csv") == first
    monkeypatch.undo()
    store.pipe_file("/bucket/train.csv", ROWS + b"fine,1\n")
    assert local_copy("memory://bucket/train.csv").read_bytes() == ROWS + b"fine,1\n"


def test_an_interrupted_copy_goes_on(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 64
    store.pipe_file("/bucket/data.bin", data)
    monkeypatch.setattr(object_store, "CHUNK", 4096)
    reads: list[int] = []
    original = object_store._Told.readinto

    def failing(self: Any, buffer: Any) -> int:
        reads.append(self.tell())
        if len(reads) == 3:
            raise OSError("cut")
        return original(self, buffer)

    monkeypatch.setattr(object_store._Told, "readinto", failing)
    with pytest.raises(PretuneError):
        local_copy("memory://bucket/data.bin")
    before = len(reads)
    assert local_copy("memory://bucket/data.bin").read_bytes() == data
    assert reads[before] > 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: read("memory://bucket/none.csv"), "memory://bucket/none.csv: no such object"),
        (lambda: local_folder("memory://bucket/none"), "memory://bucket/none: nothing is stored"),
        (lambda: find_sources(["memory://bucket/none"]), "no corpus is stored there"),
        (lambda: find_source("memory://bucket/none"), "nothing is stored there"),
        (lambda: read("gs://bucket/a.csv"), "gs://bucket/a.csv: the package gcsfs is missing"),
    ],
)
def test_what_is_missing_is_named(
    store: Any, act: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(object_store.PACKAGES, "gs", "gcsfs_that_nobody_has")
    message = message.replace("gcsfs", "gcsfs_that_nobody_has")
    with pytest.raises(PretuneError, match=message):
        act()


def test_errors_of_the_storage_are_told(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.pipe_file("/bucket/train.csv", ROWS)

    def denied(path: str, **kwargs: Any) -> Any:
        raise PermissionError("Access\x1b[31m Denied")

    monkeypatch.setattr(store, "info", denied)
    with pytest.raises(DataError, match=r"cannot be reached \(PermissionError: Access") as caught:
        look_up("memory://bucket/train.csv")
    assert caught.value.hint


def test_an_error_of_the_reader_stays_its_own(store: Any) -> None:
    store.pipe_file("/bucket/train.csv", ROWS)
    with pytest.raises(ZeroDivisionError), opened("memory://bucket/train.csv"):
        raise ZeroDivisionError


def test_no_name_leads_out_of_the_cache(store: Any, tmp_path: Path) -> None:
    store.pipe_file("/bucket/model/../../evil.json", b"{}")
    names = [own.url for own in listed("memory://bucket/model")]
    assert names == ["memory://bucket/model/../../evil.json"]
    with pytest.raises(DataError, match="not a name of a file"):
        local_folder("memory://bucket/model")
    assert not [*tmp_path.rglob("evil.json")]


def test_a_folder_there_and_back(store: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a" * 1000)
    (folder / "inner/b.bin").write_bytes(b"b" * 10)
    (folder / "manifest.json").write_text("{}")
    assert send_folder(folder, "memory://bucket/f", last=["manifest.json"]) == 1012
    assert contents(local_folder("memory://bucket/f")) == contents(folder)
    assert look_up(f"memory://bucket/f/{SENT}") is None


def test_sending_goes_on_where_it_stopped(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b", "z"):
        (folder / name).write_bytes(name.encode() * 100)
    sent: list[str] = []
    original = store.put_file

    def until_second(local: str, remote: str, **kwargs: Any) -> None:
        if len(sent) == 2:
            raise ConnectionError("cut")
        sent.append(Path(local).name)
        original(local, remote, **kwargs)

    monkeypatch.setattr(store, "put_file", until_second)
    with pytest.raises(DataError, match="ConnectionError: cut"):
        send_folder(folder, "memory://bucket/f", last=["a"])
    assert sent == ["b", "z"]
    # What has changed meanwhile is sent again, though it is as long.
    (folder / "b").write_bytes(b"B" * 100)
    monkeypatch.setattr(store, "put_file", original)
    assert send_folder(folder, "memory://bucket/f", last=["a"]) == 200
    assert store.cat_file("/bucket/f/b") == b"B" * 100


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_corpus_is_prepared_from_there_and_there(
    store: Any, kind: str, corpus_file: Path, bpe_folder: Path, tmp_path: Path
) -> None:
    texts = corpus_file.read_text(encoding="utf-8").strip().split("\n\n")[:40]
    here = tmp_path / "texts"
    here.mkdir()
    for number, part in enumerate((texts[:20], texts[20:])):
        file = here / f"{number}.{kind}"
        if kind == "txt":
            file.write_text("\n\n".join(part), encoding="utf-8")
        elif kind == "jsonl":
            file.write_text("".join(json.dumps({"text": t}) + "\n" for t in part), "utf-8")
        else:
            pq.write_table(pa.table({"text": part}), file)
        store.pipe_file(f"/bucket/texts/{file.name}", file.read_bytes())
    settings = Settings(validation=0.2, reading=ReadingOptions())
    arguments: Any = {"settings": settings, "workers": 1}
    prepare([here], bpe_folder, tmp_path / "corpus", **arguments)
    there = "memory://bucket/corpus"
    made = prepare(["memory://bucket/texts"], bpe_folder, there, **arguments)
    assert made.folder == there
    assert not made.found
    assert prepare(["memory://bucket/texts"], bpe_folder, there, **arguments).found
    # The same tokens; the manifests name their sources.
    for split in ("", "/validation"):
        assert is_corpus(there + split)
        expected = Corpus.open(f"{tmp_path}/corpus{split}", verify=True)
        assert Corpus.open(there + split, verify=True).fingerprint() == expected.fingerprint()
    assert not [*(tmp_path / "cache/prepared").iterdir()]
    # Other texts must not replace it.
    with pytest.raises(DataError, match="exists already, with other"):
        prepare([corpus_file], bpe_folder, there, **arguments)


def test_a_corpus_from_there_is_trained_on(
    store: Any, corpus_file: Path, bpe_folder: Path, tmp_path: Path
) -> None:
    there = "memory://bucket/corpus"
    prepare([corpus_file], bpe_folder, there, Settings(validation=0.1), workers=1)
    recipe = Recipe.load("gpt2-pretrain", {"data.train": there})
    assert recipe.data.validation == f"{there}/validation"
    assert recipe.model.tokenizer is None


def test_a_model_is_loaded_from_there(store: Any, tiny_folder: Path, tmp_path: Path) -> None:
    send_folder(tiny_folder, "memory://bucket/model")
    send_folder(tiny_folder, "memory://bucket/run/best")
    store.pipe_file("/bucket/model/training.pt", b"no pickle is fetched")
    found = find_source("memory://bucket/model")
    assert (found / "config.json").read_bytes() == (tiny_folder / "config.json").read_bytes()
    assert not (found / "training.pt").exists()
    assert find_source("memory://bucket/run").name == "best"
    own = find_tokenizer("memory://bucket/model")
    assert own.engine.to_str() == find_tokenizer(tiny_folder).engine.to_str()


def test_a_run_is_not_written_there(store: Any) -> None:
    with pytest.raises(PretuneError, match=r"train\.mirror=URL keeps a copy"):
        Recipe.load("mrpc", {"output": "s3://bucket/run"})


def test_no_place_to_make_a_corpus_in(
    store: Any, corpus_file: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRETUNE_CACHE", "off")
    with pytest.raises(DataError, match="PRETUNE_CACHE=off"):
        prepare([corpus_file], bpe_folder, "memory://bucket/corpus")
