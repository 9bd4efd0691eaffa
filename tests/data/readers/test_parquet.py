"""Parquet files whose tables are far larger than they are."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from pretune.corpus.documents import Meter, ReadingOptions, find_sources, read_documents
from pretune.data.readers import parquet as reader
from pretune.data.readers.files import read
from pretune.errors import DataError


def shared(folder: Path, rows: int, characters: int = 1 << 20) -> Path:
    """A small file in which many rows share two long texts."""
    texts = pa.array(["a" * characters, "b" * characters])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1] * (rows // 4)), texts)
    path = folder / "a.parquet"
    parquet.write_table(
        pa.table({"text": column.dictionary_decode() if rows < 99 else column}),
        path,
        compression="zstd",
    )
    return path


@pytest.mark.parametrize("rows", [40, 400])
def test_texts_that_a_file_shares_are_shared_in_memory(tmp_path: Path, rows: int) -> None:
    path = shared(tmp_path, rows)
    assert path.stat().st_size < 1 << 16
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        records = read(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # of 400 MiB in all rows together
    finally:
        tracemalloc.stop()
    assert pa.total_allocated_bytes() - before < 16 << 20
    assert records.rows[0]["text"] is records.rows[4]["text"]
    assert records.rows[1]["text"] == "b" * (1 << 20)
    assert records.rows[2]["text"] is None


def test_lists_of_shared_texts_share_them_too(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["a" * 99]))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2]), texts)
    parquet.write_table(pa.table({"words": lists}), tmp_path / "a.parquet")
    first, second = (row["words"] for row in read(tmp_path / "a.parquet").rows)
    assert first == second == ["a" * 99]
    assert first[0] is second[0]


def test_lists_of_texts_are_refused_before_all_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "FREE_BYTES", 1 << 16)
    lists = pa.array([["a" * (1 << 13)]] * 200)
    parquet.write_table(pa.table({"words": lists}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'words': unpacks to over 200 times"):
        read(tmp_path / "a.parquet")


def test_a_corpus_shares_them_too(tmp_path: Path) -> None:
    (source,) = find_sources([shared(tmp_path, 400)])
    tracemalloc.start()
    try:
        options = ReadingOptions(errors="skip", max_chars=1 << 21)
        documents = list(read_documents(source, options, Meter()))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert [document.problem for document in documents[:4]] == [None, None, "field", None]


def test_values_are_those_of_arrow(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["x", None, "二", "x"]).dictionary_encode(),
            "tags": pa.array([["a", None], [], None, ["a", "b"]]),
            "large": pa.array([["a"], ["b"], None, []], pa.large_list(pa.large_string())),
            "nested": pa.array([[["a"], []], None, [["b", "a"]], [None]]),
            "number": pa.array([1, None, 3, 1]).dictionary_encode(),
            "object": pa.array([{"k": "v", "n": [1]}, None, {"k": None, "n": None}, {"k": "v"}]),
            "map": pa.array(
                [[("a", "b")], None, [], [("c", None)]], pa.map_(pa.string(), pa.string())
            ),
            "raw": pa.array([b"x", None, b"\xff", b"x"]),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    assert read(tmp_path / "a.parquet").rows == table.to_pylist()


def test_a_table_of_runs_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "FREE_BYTES", 1 << 16)
    parquet.write_table(
        pa.table({"label": pa.array([1]).take(pa.array([0] * 200_000))}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a\.parquet: 200,000 rows in [\d,]+ bytes"):
        read(tmp_path / "a.parquet")


def test_packed_pages_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "FREE_BYTES", 1 << 16)
    table = pa.table({"text": [f"{i} " + "x" * 9000 for i in range(200)]})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match="unpacks to over 200 times its size"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"text,label\n", "it does not begin as one"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "a gzip file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"ARROW1\0\0\xff", "an Arrow file"),
        (b"<!DOCTYPE html>", "a page of HTML"),
    ],
)
def test_what_is_no_parquet_file_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.parquet: not a Parquet file.*{what}"):
        read(tmp_path / "a.parquet")
