"""Reading documents: what a document is, what is wrong with one, and bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.corpus.documents import (
    Meter,
    ReadingOptions,
    _cut_place,
    _DocumentBuilder,
    find_sources,
    read_documents,
)
from pretune.errors import DataError
from pretune.text.raw_text import find_files


def read(path: str | Path, **options: Any) -> list[str]:
    return [one.problem or one.text for one in documents(path, **options)]


def documents(path: str | Path, **options: Any) -> list[Any]:
    (source,) = find_sources([path])
    return list(read_documents(source, ReadingOptions(**options), Meter()))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes("\n\none\r\nmore\n \n\ntwo\n\n\n三".encode())
    return path


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("blank-line", ["one\nmore", "two", "三"]),
        ("line", ["one", "more", "two", "三"]),
        ("file", ["one\nmore\n \n\ntwo\n\n\n三"]),
    ],
)
def test_text(text: Path, mode: str, expected: list[str]) -> None:
    assert read(text, documents=mode) == expected
    zipped = text.with_name("a.txt.gz")
    zipped.write_bytes(gzip.compress(text.read_bytes()))
    assert read(zipped, documents=mode) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("好\n电影\n\n看".encode(encoding))
    given = "utf-8" if encoding == "utf-8-sig" else encoding
    assert read(path, encoding=given) == ["好\n电影", "看"]


def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n\nnot\n\xff fine\n\nfine again\n\n\xe4\xbd")
    with pytest.raises(DataError, match=r"a\.txt, line 4: not valid UTF-8 \(byte 0xff\)"):
        read(path)
    assert read(path, errors="skip") == ["fine", "encoding", "fine again", "encoding"]


BOOK = "".join(f"Zeile {i} über die Straße.\n" for i in range(300)).encode()


def test_of_a_whole_file_only_the_bad_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(BOOK.replace(b"Zeile 7 ", b"Zeile \xff 7 "))
    with pytest.raises(DataError, match=r"a\.txt, line 8: not valid UTF-8"):
        read(path, documents="file")
    (document,) = documents(path, documents="file", errors="skip")
    lines = BOOK.decode().splitlines()
    assert document == (("\n".join(lines[:7] + lines[8:])), None, False, True)


def test_parts_of_a_whole_file_say_so_too(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(BOOK.replace(b"Zeile 7 ", b"Zeile \xff 7 "))
    parts = documents(path, documents="file", errors="skip", max_chars=4000)
    assert [part.bad_lines for part in parts] == [True, True]


@pytest.mark.parametrize("errors", ["skip", "stop"])
def test_a_whole_file_in_another_encoding_is_no_document(tmp_path: Path, errors: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(BOOK.decode().encode("cp1252"))
    if errors == "skip":
        assert read(path, documents="file", errors="skip") == ["encoding"]
        return
    with pytest.raises(DataError, match="German text in Windows-1252: --encoding cp1252"):
        read(path, documents="file")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_encoding_is_guessed_at_the_place_and_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"text": "plain"}\n' if name == "a.jsonl" else b"plain\n\n"
    bad = b'{"text": "M\xfcller"}\n' if name == "a.jsonl" else b"M\xfcller\n\n"
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(line * 90_000 + bad))  # beyond the first chunk
    with pytest.raises(DataError, match="Windows-1252: --encoding cp1252"):
        read(path)
    from pretune.corpus import documents as module

    monkeypatch.setattr(module, "_encoding_hint", None)  # nothing is guessed where nobody reads it
    path.write_bytes(gzip.compress(line + bad))
    assert read(path, errors="skip") == ["plain", "encoding"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x89PNG\r\n\x1a\n", "is a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("one\n\ntwo".encode("utf-16-le"), "is text in UTF-16"),
    ],
)
@pytest.mark.parametrize("errors", ["skip", "stop"])
def test_what_is_no_text_is_named(tmp_path: Path, raw: bytes, said: str, errors: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=said):
        read(path, errors=errors)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b'{"text": "one"}\n{"text": "two"}\n', ["one", "two"]), (b"one\n\ntwo\n", ["one", "two"])],
)
def test_a_pipe_is_read_by_its_content(tmp_path: Path, raw: bytes, expected: list[str]) -> None:
    path = tmp_path / "63"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(raw,), daemon=True).start()
    (source,) = find_sources([path])
    assert source.size == len(raw)
    assert read(path) == expected


def test_chinese_in_gb18030_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("今天下雨".encode("gb18030"))
    with pytest.raises(DataError, match="--encoding gb18030"):
        read(path)


LINES = [
    b'{"text": "one"}',
    b"{broken",
    b"[1]",
    b'{"txt": "x"}',
    b'{"text": null}',
    b'{"text": "\\ud83d"}',
    b'{"text": "\xff"}',
    b"",
    b'{"text": ""}',
    b'{"text": "two\\n\\nthree"}',
]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(LINES))
    skipped = ["one", "JSON", "JSON", "field", "field", "encoding", "encoding", "", "two\n\nthree"]
    assert read(path, errors="skip") == skipped


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (1, "not valid JSON"),
        (2, "expected an object, found list"),
        (3, "no field 'text'.*\n.*Did you mean 'txt'"),
        (4, "expected a text, found nothing"),
        (5, "half a character"),
        (6, "not valid UTF-8"),
    ],
)
def test_mistakes_in_json_lines_name_the_line(tmp_path: Path, line: int, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + LINES[line])
    with pytest.raises(DataError, match=rf"a\.jsonl, line 3.*{said}"):
        read(path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert read(path, field="body", errors="skip") == ["one", "field", "two"]
    with pytest.raises(DataError, match=r"a\.parquet, row 2, field 'body'"):
        read(path, field="body")
    with pytest.raises(DataError, match="no column 'text'; it has 'body', 'n'"):
        read(path)
    path.write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file"):
        read(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("encoded", [False, True])
def test_bytes_in_parquet_that_are_no_text_name_the_row(
    tmp_path: Path, kind: pa.DataType, encoded: bool
) -> None:
    binary = pa.large_binary() if kind == pa.large_string() else pa.binary()
    raw = pa.array([b"one", b"\xff\xfe", None, "二".encode()], binary)
    column = pa.Array.from_buffers(kind, 4, raw.buffers())  # as a writer in another language may
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column.dictionary_encode() if encoded else column}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 2, field 'text': not valid UTF-8"):
        read(path)
    assert read(path, errors="skip") == ["one", "encoding", "field", "二"]


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(600)]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, *, split: table)
    assert read("owner/name:train") == table["text"][:]


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\n\n" * 9000)[:-20])
    with pytest.raises(DataError, match=r"a\.txt\.gz.*damaged gzip"):
        read(path, errors="skip")


def test_sources(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.jsonl",
        "sub/c.txt.gz",
        "README.md",
        ".hidden/d.txt",
        "t.csv",
        "README.txt",
        "sub/LICENSE.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [Path(source.name).name for source in find_sources([tmp_path])]
    assert names == ["a.jsonl", "b.txt", "c.txt.gz"]
    assert len(find_sources([tmp_path, tmp_path / "b.txt", tmp_path / "b*.txt"])) == 3
    for wrong, said in (
        (tmp_path / "nothing.txt", "no such file"),
        (tmp_path / "*.pdf", "no file has such a name"),
        (tmp_path / "t.csv", "a table"),
    ):
        with pytest.raises(DataError, match=said):
            find_sources([wrong])


def test_a_folder_has_the_files_that_a_tokenizer_is_trained_on(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.text.gz", "d.ndjson", "e.jsonl", "f.json", "g.bin"):
        (tmp_path / name).touch()
    names = [source.name for source in find_sources([tmp_path])]
    assert names == find_files([tmp_path])
    assert [Path(name).name[0] for name in names] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonl", "a.json", "a.ndjson.gz"])
def test_json_lines_have_several_names(tmp_path: Path, name: str) -> None:
    raw = b'{"text": "one"}\n{"text": "two"}\n'
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert read(tmp_path / name) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.zip", "a.jsonl.zst", "a.PDF", "a.parquet.gz", "a.tar.gz"])
def test_archives_are_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="not plain text"):
        find_sources([tmp_path / name])


def test_a_file_is_read_once_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").touch()
    (tmp_path / "b.txt").symlink_to("d/a.txt")
    monkeypatch.chdir(tmp_path)
    found = find_sources(["d/a.txt", "./d/a.txt", tmp_path / "d", "b.txt"])
    assert [source.name for source in found] == ["d/a.txt"]


@given(st.lists(st.text(alphabet="ab \n", max_size=7)), st.integers(7, 20))
def test_a_long_document_is_cut_and_nothing_is_lost(lines: list[str], most: int) -> None:
    builder = _DocumentBuilder(most)
    pieces = [piece for line in lines for piece in builder.add(line)] + list(builder.finish())
    assert "".join("".join(p.text for p in pieces).split()) == "".join("".join(lines).split())
    assert all(len(p.text) <= most for p in pieces)
    assert [p.cut for p in pieces] == [i > 0 for i in range(len(pieces))]


def test_cut_at_a_line_then_at_a_word() -> None:
    assert _cut_place("aaaa\nbb cc", 8) == 5
    assert _cut_place("aaaaabb cc", 9) == 8
    assert _cut_place("aaaaaaaaaa", 9) == 9


SCRIPT = """
import resource, sys
from pretune.corpus.documents import CorpusSource, Meter, ReadingOptions, read_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = longest = 0
documents = read_documents(
    CorpusSource(sys.argv[1], "text"), ReadingOptions(max_chars=100_000), Meter()
)
for one in documents:
    count, longest = count + 1, max(longest, len(one.text))
print(count, longest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("unit", ["x", "好 ", "word " * 800 + "\n\n", " "])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "big.txt"
    with path.open("w", encoding="utf-8") as handle:
        for _ in range(30):
            handle.write(unit * (1_000_000 // len(unit.encode())))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True
    )
    _, longest, kilobytes = map(int, done.stdout.split())
    assert longest <= 100_000
    assert kilobytes < 15_000  # of a file of 30,000


def test_json_line_over_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretune.corpus import documents as module

    monkeypatch.setattr(module, "MAX_JSON_LINE", 50)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 200}) + '\n{"text": "fine"}\n')
    assert read(path, errors="skip") == ["JSON", "fine"]
    with pytest.raises(DataError, match=r"line 1: over 50 characters"):
        read(path)
