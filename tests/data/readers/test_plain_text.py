"""Plain text: a file, or the files of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.corpus.documents import Meter, ReadingOptions, find_sources, read_documents
from pretune.data.readers.files import read
from pretune.data.readers.plain_text import split_documents
from pretune.errors import DataError
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.features import read_for
from pretune.tasks.masked_lm.mask_lm import MaskLm, MaskLmOptions


def test_files_of_a_folder_whichever_way_their_names_are_written(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one"), ("B.TXT", "two"), ("c.md", "three")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert sorted(row["text"] for row in read(tmp_path).rows) == ["one", "two"]
    (tmp_path / "a.txt").unlink()
    assert [row["text"] for row in read(tmp_path).rows] == ["two"]


class TestDocuments:
    TEXT = "\n\nFirst line.\nSecond line.\n \t\n\nAnother.\n"

    def test_blank_lines_separate_them(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text(self.TEXT, encoding="utf-8")
        records = read(tmp_path / "a.txt")
        assert [row["text"] for row in records.rows] == ["First line.\nSecond line.", "Another."]
        assert records.where(1) == f"{tmp_path / 'a.txt'}, line 7"
        assert records.text_unit == "blank-line"

    def test_a_whole_file_where_told(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text(self.TEXT, encoding="utf-8")
        records = read(tmp_path / "a.txt", text_unit="file")
        assert [row["text"] for row in records.rows] == [self.TEXT]

    def test_a_blank_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text(" \n\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"a\.txt: no text in it"):
            read(tmp_path)

    @given(
        text=st.lists(st.sampled_from(["a", "b c", "\n", "\n\n", " ", "\t"]), max_size=20).map(
            "".join
        )
    )
    def test_train_and_prepare_read_the_same_documents(self, tmp_path_factory, text: str) -> None:
        path = tmp_path_factory.getbasetemp() / "same.txt"
        path.write_text(text, encoding="utf-8")
        prepared = [
            document.text
            for document in read_documents(find_sources([path])[0], ReadingOptions(), Meter())
        ]
        assert [document for _, document in split_documents(text)] == prepared

    def test_a_task_that_reads_one_running_text_gets_the_whole_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text(self.TEXT, encoding="utf-8")
        tasks = (MaskLm(MaskLmOptions()), CausalLm(CausalLmOptions()))
        records = [read_for(task, tmp_path / "a.txt", columns={}) for task in tasks]
        assert [each.text_unit for each in records] == ["blank-line", "file"]
