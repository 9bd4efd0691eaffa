"""Reading raw text as a stream, and keeping an even sample of it."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from pretune.errors import DataError
from pretune.text import byte_stream
from pretune.text import raw_text as read
from pretune.text.raw_text import _pieces, find_files, iter_texts
from pretune.text.text_sample import take_sample

TEXT = st.text(max_size=120) | st.text(alphabet="ab \n\t.'é中\r", max_size=300)


def texts(*files: Path, **options: str) -> list[str]:
    return list(iter_texts(map(str, files), **options))


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


class TestFindFiles:
    def test_folders_patterns_and_files_each_once_and_sorted(self, tmp_path: Path) -> None:
        for name in ("b.txt", "a.md", "c/d.jsonl.gz", "c/e.TXT", "f.bin", ".git/x.txt", ".y.txt"):
            write(tmp_path / name, "x")
        write(tmp_path / "README.md", "x")
        expected = [str(tmp_path / n) for n in ("a.md", "b.txt", "c/d.jsonl.gz", "c/e.TXT")]
        assert find_files([tmp_path]) == expected
        assert find_files([tmp_path / "c", tmp_path / "b.txt", tmp_path]) == expected
        assert find_files([f"{tmp_path}/**/*.TXT"]) == [expected[3]]
        assert find_files(["-", tmp_path / "f.bin", "-"]) == [str(tmp_path / "f.bin"), "-"]
        assert find_files([tmp_path / "README.md"]) == [str(tmp_path / "README.md")]

    def test_what_names_nothing_is_an_error(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", "x")
        write(tmp_path / "a.tsv", "x")
        for source, said in (
            ("none.txt", "no such file"),
            ("*.txt", "nothing fits"),
            ("", "no text files"),
            ("a.parquet", "not plain text"),
            ("a.tsv", "a table"),
        ):
            with pytest.raises(DataError, match=said):
                find_files([tmp_path / source])


class TestIterTexts:
    @given(text=TEXT, size=st.integers(1, 30), chunk=st.integers(1, 7))
    def test_pieces_are_the_text(self, text, size, chunk) -> None:
        chunks = [text[i : i + chunk] for i in range(0, len(text), chunk)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read, "PIECE_CHARS", size)
            found = list(_pieces(chunks))
        assert "".join(found) == text
        assert all(0 < len(piece) <= size for piece in found)

    @given(words=st.lists(st.text(alphabet="ab'.,é中 \n\t\r\xa0", max_size=8), max_size=30))
    def test_words_are_the_same_on_both_sides_of_a_cut(self, words) -> None:
        text = " ".join(words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read, "PIECE_CHARS", 20)
            found = list(_pieces([text]))
        if any(len(piece) == 20 for piece in found):
            return  # nothing to cut at, perhaps
        for splitter in (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.BertPreTokenizer(),
        ):
            whole = [word for word, _ in splitter.pre_tokenize_str(text)]
            cut = [word for piece in found for word, _ in splitter.pre_tokenize_str(piece)]
            assert cut == whole

    @given(text=TEXT.filter(lambda text: "\0" not in text))  # zero bytes are no text
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-le"])
    def test_unchanged_in_any_encoding(self, tmp_path_factory, text, encoding) -> None:
        path = tmp_path_factory.mktemp("x") / "a.txt"
        path.write_bytes(text.encode(encoding))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(byte_stream, "READ_BYTES", 3)
            assert "".join(texts(path, encoding=encoding)) == text.removeprefix("\ufeff")

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "gb18030"])
    def test_byte_order_mark(self, tmp_path: Path, monkeypatch, encoding: str) -> None:
        path = write(tmp_path / "a.txt", "\ufeffone \ufeff二".encode(encoding))
        for size in (1, 1 << 20):
            monkeypatch.setattr(byte_stream, "READ_BYTES", size)
            assert "".join(texts(path, encoding=encoding)) == "one \ufeff二"

    def test_gzip_jsonl_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        records = "".join(json.dumps({"body": t}) + "\n\n" for t in ("one\n", "", "电影\x00"))
        plain = write(tmp_path / "a.txt.gz", gzip.compress(b"\xef\xbb\xbfhello", mtime=0) * 2)
        lines = write(tmp_path / "b.jsonl.gz", gzip.compress(records.encode()))
        assert texts(plain) == ["hello\ufeffhello"]  # two members are one text
        assert texts(lines, field="body") == ["one\n", "电影\x00"]
        unnamed = write(tmp_path / "c.txt", gzip.compress(b"hello"))
        assert texts(unnamed) == ["hello"]

    def test_a_field_is_of_records(self, tmp_path: Path) -> None:
        records = write(tmp_path / "a.json", '{"body": "one"}\n{"body": "two"}\n')
        plain = write(tmp_path / "b.txt", "three")
        assert texts(records, plain, field="body") == ["one", "two", "three"]
        with pytest.raises(DataError, match="none of the files is JSON lines"):
            texts(plain, field="body")

    def test_standard_input(self, monkeypatch) -> None:
        def give(raw: bytes) -> None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))

        give(b"one\ntwo")
        assert list(iter_texts(["-"])) == ["one\ntwo"]
        give(b'{"text": "one"}\n{"text": "two"}')
        assert list(iter_texts(["-"], field="text")) == ["one", "two"]

    @pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
    def test_broken_utf8_names_file_and_line(self, tmp_path: Path, monkeypatch, chunk) -> None:
        monkeypatch.setattr(byte_stream, "READ_BYTES", chunk)
        path = write(tmp_path / "a.txt", "é\n中\n".encode() + b"abc \xe4\xb8\n\xff")
        with pytest.raises(DataError, match=r"a\.txt, line 3: not valid UTF-8 \(byte 0xe4\)"):
            texts(path)
        cut = write(tmp_path / "b.txt", "一\n二".encode()[:-1])
        with pytest.raises(DataError, match=r"b\.txt, line 2: not valid UTF-8"):
            texts(cut)

    @pytest.mark.parametrize(
        ("name", "raw", "options", "said"),
        [
            ("a.txt", b"x", {"encoding": "utf-99"}, "no encoding is called"),
            ("a.txt", b"x", {"encoding": "rot13"}, "no encoding is called"),
            ("a.txt", "中".encode("utf-16"), {}, "--encoding utf-16"),
            ("a.txt.gz", b"not gzip at all", {}, "not a gzip file"),
            ("a.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], {}, "not a gzip file"),
            ("a.jsonl", b'{"text": 1}', {}, "line 1, field 'text': expected a text, found an int"),
            ("a.jsonl", b'\n{"text": null}', {}, "line 2, field 'text'.*found nothing"),
            ("a.jsonl", b'{"texts": "x"}', {}, "no field 'text'.*Did you mean 'texts'"),
            ("a.jsonl", b'{"text": "x"}\n{"text": ', {}, "line 2: not valid JSON"),
            ("a.jsonl", b'["x"]', {}, "expected an object, found list"),
            ("a.jsonl", b'{"text": "\\ud83d"}', {}, "half a character"),
            ("a.jsonl", b"[" * 100_000, {}, "not valid JSON"),
        ],
    )
    def test_what_cannot_be_read(self, tmp_path: Path, name, raw, options, said) -> None:
        path = write(tmp_path / name, raw)
        with pytest.raises(DataError, match=f"(?s){said}"):
            texts(path, **options)

    def test_a_record_has_a_longest_length(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(read, "LONGEST_RECORD", 50)
        monkeypatch.setattr(byte_stream, "READ_BYTES", 10)
        path = write(tmp_path / "a.jsonl", '{"text": "x"}\n{"text": "' + "y" * 100 + '"}\n')
        with pytest.raises(DataError, match="line 2: a record of over 50"):
            texts(path)

    def test_a_long_line_is_never_read_whole(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(byte_stream, "READ_BYTES", 1 << 10)
        monkeypatch.setattr(read, "PIECE_CHARS", 1 << 8)
        path = write(tmp_path / "a.txt", b"x" * (1 << 16))
        told: list[int] = []
        stream = iter_texts([str(path)], on_bytes=told.append)
        assert len(next(stream)) == 1 << 8
        assert sum(told) <= 2 << 10
        assert sum(map(len, stream)) == (1 << 16) - (1 << 8)
        assert sum(told) == 1 << 16

    def test_a_folder_in_place_of_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            texts(tmp_path)


class TestSample:
    @given(given=st.lists(st.text(max_size=50), max_size=30))
    def test_whole_where_it_fits(self, given) -> None:
        sample = take_sample(given, 1 << 20)
        assert sample.whole
        assert list(sample.texts) == [text for text in given if text]
        assert sample.seen == sample.texts.bytes == sum(len(t.encode()) for t in given)
        assert len(sample.texts) == sum(map(bool, given))

    @pytest.mark.parametrize("parts", [2, 3.7, 10, 100])
    def test_even_and_bounded(self, parts) -> None:
        count, size = 4000, 1 << 14
        limit = int(count * size / parts)
        stream = (f"{i:08d}" * (size // 8) for i in range(count))
        sample = take_sample(stream, limit)
        kept = [int(text[:8]) for text in sample.texts]
        assert not sample.whole
        assert sample.seen == count * size
        assert limit - size < sample.texts.bytes <= limit
        assert kept == sorted(kept)
        # Three gaps at most, none over 2.62 times (the golden ratio squared) the mean.
        gaps = {b - a for a, b in itertools.pairwise(kept)}
        assert len(gaps) <= 3
        assert max(*gaps, kept[0], count - kept[-1]) <= 2.62 * parts + 1

    def test_memory_stays_bounded(self) -> None:
        import tracemalloc

        stream = (f"{i:08d}" * 2048 for i in range(2000))  # 32 MB
        tracemalloc.start()
        try:
            take_sample(stream, 1 << 20)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 << 20

    def test_a_part_is_held_out_of_enough_text(self) -> None:
        many = [f"{i:08d}" * 2048 for i in range(100)]
        train, rest = take_sample(many, 1 << 30).split()
        assert len(rest) == 5
        assert sorted([*train, *rest]) == many
        few = take_sample(["a", "b"], 1 << 20)
        assert few.split() == (few.texts, few.texts)


@pytest.mark.skipif(os.geteuid() == 0, reason="running as root, who may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        texts(path)
