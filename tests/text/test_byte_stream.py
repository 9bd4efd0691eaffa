"""Bytes of files: gzip by its content and within bounds, pipes, and what is no text."""

from __future__ import annotations

import gzip
import io
import os
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.errors import DataError
from pretune.text import byte_stream
from pretune.text.byte_stream import file_bytes, first_bytes, is_file, spooled


def bytes_of(path: Path, **options: bool) -> bytes:
    return b"".join(file_bytes(str(path), **options))


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


class TestGzip:
    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.csv"])
    def test_is_told_by_the_content(self, tmp_path: Path, name: str) -> None:
        assert bytes_of(write(tmp_path / name, gzip.compress(b"text " * 9))) == b"text " * 9

    @given(
        members=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
        size=st.integers(1, 9),
        zeros=st.sampled_from([0, 1, 512]),
    )
    def test_members_in_pieces_of_any_size(
        self, tmp_path_factory: pytest.TempPathFactory, members: list[bytes], size: int, zeros: int
    ) -> None:
        packed = b"".join(gzip.compress(b"text: " + member) for member in members)
        pieces = [packed[i : i + size] for i in range(3, len(packed), size)] + [b"\0" * zeros]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(byte_stream, "READ_BYTES", 7)
            unpacked = list(byte_stream._gunzipped(iter([packed[:3], *pieces]), "a.gz"))
        assert b"".join(unpacked) == b"".join(b"text: " + member for member in members)
        assert all(0 < len(piece) <= 7 for piece in unpacked)

    @pytest.mark.parametrize("lost", [1, 8, 9, 30])
    def test_a_cut_file_is_named(self, tmp_path: Path, lost: int) -> None:
        path = write(tmp_path / "a.jsonl.gz", gzip.compress(os.urandom(99))[:-lost])
        with pytest.raises(
            DataError, match=r"a\.jsonl\.gz: .*damaged gzip file \(it ends too early"
        ):
            bytes_of(path, wide=True)

    def test_a_changed_file_is_named(self, tmp_path: Path) -> None:
        raw = bytearray(gzip.compress(b"one two three " * 9))
        raw[-6] ^= 1
        with pytest.raises(DataError, match="damaged gzip file"):
            bytes_of(write(tmp_path / "a.gz", bytes(raw)))

    def test_a_bomb_is_refused_before_the_memory_is_full(self, tmp_path: Path) -> None:
        bomb = io.BytesIO()
        with gzip.open(bomb, "wb", compresslevel=1) as packed:
            for _ in range(80):
                packed.write(b"x" * (1 << 20))
        path = write(tmp_path / "a.txt.gz", bomb.getvalue())
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match=r"a\.txt\.gz: unpacks to over 200 times its size"):
                for _ in file_bytes(str(path)):
                    pass
            assert tracemalloc.get_traced_memory()[1] < 1 << 23
        finally:
            tracemalloc.stop()

    def test_progress_is_of_the_packed_bytes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt.gz", gzip.compress(b"text " * 999))
        told: list[int] = []
        assert sum(map(len, file_bytes(str(path), told.append))) == 5 * 999
        assert sum(told) == path.stat().st_size


def workbook(member: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, b"<xml/>")
    return file.getvalue()


@pytest.mark.parametrize(
    ("raw", "what", "way_out"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image", "Give a file of text"),
        (b"\x7fELF\x02\x01\x01" + b"\0" * 60, "a program", "Give a file of text"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF file", "Export its text"),
        (workbook("xl/workbook.xml"), "an Excel workbook", "save it as CSV"),
        (workbook("word/document.xml"), "a Word document", "Export its text"),
        (workbook("train.csv"), "a ZIP archive", "unzip"),
        (b"\x28\xb5\x2f\xfd\x04\0", "a Zstandard file", "zstd -d"),
        (b"\xfd7zXZ\0\0", "an xz file", "xz -dk"),
        (b"BZh91AY&SY\x12", "a bzip2 file", "bzip2 -dk"),
        (b"PAR1\x15\x04\x15", "a Parquet file", ".parquet"),
        (b"\x80\x04\x95\x10\0\0\0", "a Python pickle", "JSON lines"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS", "git lfs pull"),
        ("text,label\n".encode("utf-16-le"), "text in UTF-16", "data.encoding=utf-16-le"),
        ("text,label\n".encode("utf-16-be"), "text in UTF-16", "data.encoding=utf-16-be"),
        (bytes([1, 0, 2, 3, 0, 0, 9, 0]) * 20, "a binary file", "Give a file of text"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_text_is_named(
    tmp_path: Path, raw: bytes, what: str, way_out: str, packed: bool
) -> None:
    path = write(tmp_path / "a.csv", gzip.compress(raw) if packed else raw)
    with pytest.raises(DataError) as caught:
        bytes_of(path)
    assert caught.value.message.startswith(f"{path}: is ")
    assert what in caught.value.message
    assert way_out in (caught.value.hint or "")


@pytest.mark.parametrize(
    "raw", [b"", b"PAR1 of the book", b"PK of the team", b"BZh is a word", b"a\0b"]
)
def test_text_is_not_taken_for_another_kind(tmp_path: Path, raw: bytes) -> None:
    assert bytes_of(write(tmp_path / "a.txt", raw)) == raw


def test_zero_bytes_are_usual_in_wide_encodings(tmp_path: Path) -> None:
    raw = "text,label\n".encode("utf-16-le")
    assert bytes_of(write(tmp_path / "a.csv", raw), wide=True) == raw


class TestPipes:
    @staticmethod
    def feed(path: Path, raw: bytes) -> None:
        threading.Thread(target=path.write_bytes, args=(raw,), daemon=True).start()

    def test_are_read_once_and_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        assert is_file(path)
        self.feed(path, gzip.compress(b"one\ntwo\n"))
        assert first_bytes(str(path), 3) == b"one"
        assert bytes_of(path) == b"one\ntwo\n"
        assert spooled(path) == spooled(path)

    def test_a_pipe_that_was_written_again_is_read_again(self, tmp_path: Path) -> None:
        path = tmp_path / "pipe"
        os.mkfifo(path)
        self.feed(path, b"one")
        assert bytes_of(path) == b"one"
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # as a writer does
        self.feed(path, b"two")
        assert bytes_of(path) == b"two"

    @pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "nothing", ""])
    def test_no_name_raises(self, name: str) -> None:
        assert not is_file(name)
