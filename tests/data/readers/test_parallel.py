"""Two files of parallel text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.errors import DataError

GERMAN = "Ein Hund.\nZwei Männer.\n\nDrei.\n"
ENGLISH = "A dog.\r\nTwo men.\r\n\r\nThree.\r\n"


def files(folder: Path, first: str | bytes, second: str | bytes) -> str:
    for name, text in (("a.de", first), ("a.en", second)):
        raw = text.encode() if isinstance(text, str) else text
        (folder / name).write_bytes(raw)
    return f"{folder / 'a.de'},{folder / 'a.en'}"


def test_a_line_is_a_pair_and_blank_ones_are_none(tmp_path: Path) -> None:
    found = read(files(tmp_path, GERMAN, ENGLISH))
    assert found.columns == ("source", "target")
    assert list(found.rows) == [
        {"source": "Ein Hund.", "target": "A dog."},
        {"source": "Zwei Männer.", "target": "Two men."},
        {"source": "Drei.", "target": "Three."},
    ]
    assert found.where(2).endswith("a.en, line 4")


def test_characters_inside_a_sentence_end_no_line(tmp_path: Path) -> None:
    found = read(files(tmp_path, "a\u2028b\x0cc\nd", "x\ny\x85z"))
    assert [row["source"] for row in found.rows] == ["a\u2028b\x0cc", "d"]
    assert [row["target"] for row in found.rows] == ["x", "y\x85z"]


def refused(source: str, **options: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    return caught.value


def test_unequal_counts_are_named(tmp_path: Path) -> None:
    error = refused(files(tmp_path, "a\nb\nc\n", "x\ny\n"))
    assert error.message == f"{tmp_path / 'a.de'} has 3 lines, {tmp_path / 'a.en'} has 2"
    assert "missing" in error.hint


@pytest.mark.parametrize(
    ("first", "second", "named"), [("a\n \nc", "x\ny\nz", "a.de"), ("a\nb\nc", "x\n\nz", "a.en")]
)
def test_a_line_that_is_blank_on_one_side(
    first: str, second: str, named: str, tmp_path: Path
) -> None:
    error = refused(files(tmp_path, first, second))
    assert error.message.startswith(f"{tmp_path / named}, line 2: blank")


def test_broken_utf_8_names_file_line_and_byte(tmp_path: Path) -> None:
    error = refused(files(tmp_path, "a\nb\n", b"x\ny\xff\n"))
    assert error.message == f"{tmp_path / 'a.en'}, line 2: not valid UTF-8 (byte 0xff)"


def test_another_encoding(tmp_path: Path) -> None:
    found = read(files(tmp_path, "狗\n".encode("gb18030"), b"dog\n"), encoding="gb18030")
    assert found.rows[0]["source"] == "狗"


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.de").write_text("a\n")
    error = refused(f"{tmp_path / 'a.de'},{tmp_path / 'a.dd'}")
    assert error.message == f"{tmp_path / 'a.dd'}: no such file. Did you mean 'a.de'?"


def test_nothing_at_all(tmp_path: Path) -> None:
    assert "no records" in refused(files(tmp_path, "\n\n", "\n\n")).message


def test_a_name_with_a_comma_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a,b.tsv").write_text("text\nx\n")
    assert read(tmp_path / "a,b.tsv").columns == ("text",)


def test_a_mapping_for_other_data_does_no_harm(tmp_path: Path) -> None:
    """Recipes map the columns of the dataset they name."""
    found = read(files(tmp_path, GERMAN, ENGLISH))
    mapped = found.mapped({"source": "de", "target": "en"}, ["source", "target"])
    assert mapped.columns == ("source", "target")
    table = Records([{"de": "a", "en": "b"}], "t.tsv", None, ("de", "en"))
    assert table.mapped({"source": "en", "target": "de"}, ["source"]).rows[0]["source"] == "b"


LINES = st.lists(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), min_size=1
    ).filter(str.strip),
    min_size=1,
)


@given(LINES)
def test_every_line_comes_back(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    text = "\n".join(lines)
    found = read(files(tmp_path_factory.mktemp("p"), text, text[::1] + "\n"))
    assert [row["source"] for row in found.rows] == lines
    assert [row["target"] for row in found.rows] == lines
