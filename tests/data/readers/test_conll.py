"""Columns of words and tags: line ends, comments, spaces as words, numbers of columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretune.data.readers.conll import looks_like_conll
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.errors import DataError

TWO = "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n"
ROWS = [
    {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
    {"tokens": ["Peter"], "ner_tags": ["B-PER"]},
]


def table(folder: Path, content: str, name: str = "a.conll", **columns: str) -> Records:
    (folder / name).write_bytes(content.encode())
    return read(folder / name, columns=columns)


@pytest.mark.parametrize("name", ["a.conll", "a.txt"])
@pytest.mark.parametrize("between", ["\t", " "])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\r\r\n"])
def test_line_ends(tmp_path: Path, ends: str, between: str, name: str) -> None:
    records = table(tmp_path, TWO.replace("\t", between).replace("\n", ends), name)
    assert (list(records.rows), list(records.lines or ())) == (ROWS, [1, 4])


@pytest.mark.parametrize("word", [" ", "  ", "\u3000", "#", "\u00a0"])
def test_a_space_between_tabs_is_a_word(tmp_path: Path, word: str) -> None:
    records = table(tmp_path, f"EU\tB-ORG\n{word}\tO\nx\tO\n")
    assert records.rows[0]["tokens"] == ["EU", word, "x"]


@pytest.mark.parametrize("content", ["EU\tB-ORG\n\tO\n", "EU\tB-ORG\nx\t\n"])
def test_an_empty_column_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"a\.conll, line 2: (an empty column|1 columns)"):
        table(tmp_path, content)


@pytest.mark.parametrize("comment", ["# id 7", "# sent_id = 7", "#7", "#\tfrom\ta\tpage", "# 7"])
@pytest.mark.parametrize("between", ["\t", " "])
def test_comments_before_a_sentence(tmp_path: Path, between: str, comment: str) -> None:
    first, second = TWO.replace("\t", between).split("\n\n")
    records = table(tmp_path, f"{comment}\n{first}\n\n{comment}\n# more\n{second}")
    assert (list(records.rows), list(records.lines or ())) == (ROWS, [2, 7])
    assert records.notes == (
        f"{tmp_path / 'a.conll'}: comments that begin with '#': 3, the first on line 1",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("#\tO\nEU\tB-ORG\n", ["#", "EU"]),
        ("# O\nEU B-ORG\n", ["#", "EU"]),
        ("#rt O\nEU B-ORG\n", ["#rt", "EU"]),
        ("# #\n5 CD\n", ["#", "5"]),  # the Penn Treebank's tag of a pound sign
        ("# NN\n5 NN\n", ["#", "5"]),
        ("EU\tB-ORG\n#\tO\n", ["EU", "#"]),
        ("#\n#tag\nword\n", ["#", "#tag", "word"]),
    ],
)
def test_a_hash_with_a_tag_is_a_word(tmp_path: Path, content: str, words: list[str]) -> None:
    records = table(tmp_path, content)
    assert (records.rows[0]["tokens"], records.notes) == (words, ())


def test_a_comment_inside_a_sentence_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: 3 columns"):
        table(tmp_path, "EU\tB-ORG\n# a b\nx\tO\n")


FOUR = "EU\tNNP\tB-NP\tB-ORG\nrejects\tVBZ\tB-VP\tO\n"


@pytest.mark.parametrize(
    ("columns", "words", "tags"),
    [
        ({}, ["EU", "rejects"], ["B-ORG", "O"]),
        ({"ner_tags": "3"}, ["EU", "rejects"], ["B-NP", "B-VP"]),
        ({"ner_tags": "-2"}, ["EU", "rejects"], ["B-NP", "B-VP"]),
        ({"tokens": "2", "ner_tags": "-1"}, ["NNP", "VBZ"], ["B-ORG", "O"]),
    ],
)
def test_numbers_choose_columns(
    tmp_path: Path, columns: dict[str, str], words: list[str], tags: list[str]
) -> None:
    records = table(tmp_path, FOUR, **columns).mapped(columns, ["tokens", "ner_tags"])
    assert list(records.rows) == [{"tokens": words, "ner_tags": tags}]
    assert len(records.notes) == ("ner_tags" not in columns)


@pytest.mark.parametrize("number", ["5", "-5"])
def test_a_number_too_high_is_named(tmp_path: Path, number: str) -> None:
    with pytest.raises(DataError, match=rf"no column {number} \(for 'ner_tags'\).*have 4"):
        table(tmp_path, FOUR, ner_tags=number)


def test_a_column_that_counts_words_is_none_of_them(tmp_path: Path) -> None:
    """As in GermEval 2014 and CoNLL-U, where `2-3` is a line for two words together."""
    content = "# a page\n1\tAm\tO\tO\n2-3\tzum\tO\tO\n2\tzu\tO\tO\n3\tBerg\tB-LOC\tO\n"
    records = table(tmp_path, content, ner_tags="3").mapped({"ner_tags": "3"}, ["ner_tags"])
    assert list(records.rows) == [{"tokens": ["Am", "zu", "Berg"], "ner_tags": ["O", "O", "B-LOC"]}]


def test_text_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# Title\n\nTo be or not O\nthe end\n", encoding="utf-8")
    assert not looks_like_conll((tmp_path / "a.txt").read_text(encoding="utf-8"))
