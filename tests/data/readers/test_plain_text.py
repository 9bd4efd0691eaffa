"""Plain text: a file, or the files of a folder."""

from __future__ import annotations

from pathlib import Path

from pretune.data.readers.files import read


def test_files_of_a_folder_whichever_way_their_names_are_written(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one"), ("B.TXT", "two"), ("c.md", "three")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert sorted(row["text"] for row in read(tmp_path).rows) == ["one", "two"]
    (tmp_path / "a.txt").unlink()
    assert [row["text"] for row in read(tmp_path).rows] == ["two"]
