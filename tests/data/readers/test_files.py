"""Reading files; every error names its file and, where there is one, the line and column."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.readers import delimited
from pretune.data.readers.files import read, read_parts
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.text import byte_stream, decode

ROWS = [{"text": "good film", "label": "1"}, {"text": "电影不好看", "label": "0"}]


def write(folder: Path, name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def refused(source: str | Path, **options: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    return caught.value


CONTENTS = {
    "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "a.ndjson": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.json": json.dumps(ROWS, indent=1),
    "a.csv": "text,label\ngood film,1\n电影不好看,0\n",
    "a.tsv": "text\tlabel\ngood film\t1\n电影不好看\t0\n",
    "A.TSV": "text\tlabel\ngood film\t1\n电影不好看\t0\n",
}


class TestFormats:
    @pytest.mark.parametrize("name", CONTENTS)
    def test_rows(self, tmp_path, name):
        assert list(read(write(tmp_path, name, CONTENTS[name])).rows) == ROWS

    @pytest.mark.parametrize("name", CONTENTS)
    def test_columns(self, tmp_path, name):
        assert read(write(tmp_path, name, CONTENTS[name])).columns == ("text", "label")

    def test_parquet(self, tmp_path):
        parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
        records = read(tmp_path / "a.parquet")
        assert (list(records.rows), records.columns) == (ROWS, ("text", "label"))

    @pytest.mark.parametrize("name", CONTENTS)
    def test_windows_line_ends(self, tmp_path, name):
        content = CONTENTS[name].replace("\n", "\r\n")
        assert list(read(write(tmp_path, name, content)).rows) == ROWS

    @pytest.mark.parametrize("quoting", ["standard", "none"])
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
    def test_line_ends_of_old_macs(self, tmp_path, name, quoting):
        content = CONTENTS[name].replace("\n", "\r")
        records = read(write(tmp_path, name, content), quoting=quoting)
        assert (list(records.rows), list(records.lines)) == (ROWS, [2, 3])

    def test_carriage_returns_stay_where_line_feeds_end_lines(self, tmp_path):
        path = write(tmp_path, "a.tsv", "text\tlabel\none\rtwo\t1\r\n")
        assert read(path).rows == [{"text": "one\rtwo", "label": "1"}]

    @pytest.mark.parametrize("name", CONTENTS)
    def test_byte_order_mark(self, tmp_path, name):
        records = read(write(tmp_path, name, CONTENTS[name], "utf-8-sig"))
        assert list(records.rows) == ROWS

    @pytest.mark.parametrize("encoding", ["utf_8", "U8", "UTF8", "utf-8-sig"])
    def test_byte_order_mark_by_other_spellings(self, tmp_path, encoding):
        path = write(tmp_path, "a.csv", CONTENTS["a.csv"], "utf-8-sig")
        assert read(path, encoding=encoding).columns == ("text", "label")

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-be", "gb18030"])
    @pytest.mark.parametrize("name", CONTENTS)
    def test_byte_order_mark_of_other_encodings(self, tmp_path, name, encoding):
        path = write(tmp_path, name, "\ufeff" + CONTENTS[name], encoding)
        records = read(path, encoding=encoding)
        assert (list(records.rows), records.columns) == (ROWS, ("text", "label"))

    @pytest.mark.parametrize("name", CONTENTS)
    def test_no_line_end_at_the_end(self, tmp_path, name):
        assert list(read(write(tmp_path, name, CONTENTS[name].rstrip("\n"))).rows) == ROWS

    @pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
    @pytest.mark.parametrize("name", CONTENTS)
    def test_other_encodings(self, tmp_path, name, encoding):
        path = write(tmp_path, name, CONTENTS[name], encoding)
        assert list(read(path, encoding=encoding).rows) == ROWS

    def test_columns_of_uneven_json_rows_are_all_of_them(self, tmp_path):
        path = write(tmp_path, "a.jsonl", '{"a": 1}\n{"b": 2, "a": 3}\n')
        assert read(path).columns == ("a", "b")

    def test_spaces_around_header_names_are_dropped(self, tmp_path):
        assert read(write(tmp_path, "a.csv", "text, label\na,1\n")).columns == ("text", "label")

    @pytest.mark.parametrize(("name", "sep"), [("a.csv", ","), ("a.tsv", "\t")])
    def test_the_index_that_pandas_writes_is_left_out(self, tmp_path, name, sep):
        import pandas

        table = pandas.DataFrame(ROWS, index=[7, 7])  # as after drawing rows, or joining tables
        table.to_csv(tmp_path / name, sep=sep)
        records = read(tmp_path / name)
        assert (list(records.rows), records.columns) == (ROWS, ("text", "label"))
        told = "the first column, numbers without a name, is left out as an index"
        assert records.notes == (f"{tmp_path / name}: {told}",)
        table.to_csv(tmp_path / name, sep=sep, index=False)
        assert read(tmp_path / name).notes == ()

    @pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
    def test_delimiters_at_the_ends_of_lines_are_left_out(self, tmp_path, name):
        between = "," if name == "a.csv" else "\t"
        content = CONTENTS[name].replace("\n", f"{between}\n")
        records = read(write(tmp_path, name, content))
        assert (list(records.rows), records.columns) == (ROWS, ("text", "label"))

    @pytest.mark.parametrize(
        "content",
        [
            "text,label,,\ngood film,1,,\n电影不好看,0, ,\n",
            ",text,label,\n0,good film,1,\n1,电影不好看,0,\n",
        ],
    )
    def test_several_columns_without_names_are_left_out(self, tmp_path, content):
        records = read(write(tmp_path, "a.csv", content))
        assert (list(records.rows), records.columns) == (ROWS, ("text", "label"))

    @given(
        rows=st.lists(
            st.tuples(*[st.text(st.characters(exclude_characters="\t\n\r", codec="utf-8"))] * 2),
            min_size=1,
        )
    )
    def test_any_text_comes_back_from_a_tsv(self, tmp_path_factory, rows):
        lines = ["text\tlabel", *("\t".join(row) for row in rows)]
        path = write(tmp_path_factory.getbasetemp(), "any.tsv", "\n".join(lines))
        assert [tuple(row.values()) for row in read(path).rows] == rows


class TestDelimiters:
    """Tables whose delimiter is not that of their name."""

    @pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize(
        ("name", "delimiter", "called"),
        [
            ("a.csv", ";", "semicolons between columns, not commas"),
            ("a.csv", "\t", "tabs between columns, not commas"),
            ("a.csv", "|", "bars between columns, not commas"),
            ("a.tsv", ",", "commas between columns, not tabs"),
            ("a.tsv", ";", "semicolons between columns, not tabs"),
        ],
    )
    def test_another_is_read_and_told(self, tmp_path, name, delimiter, called, ends):
        content = CONTENTS["a.csv"].replace(",", delimiter).replace("\n", ends)
        path = write(tmp_path, name, content)
        records = read(path)
        assert (list(records.rows), list(records.lines)) == (ROWS, [2, 3])
        assert records.notes == (f"{path}: read with {called}",)

    def test_as_pandas_writes_it(self, tmp_path):
        import pandas

        rows = [{"text": 'a; "b"\nc', "score": "0,5"}, {"text": "d, e", "score": "1,25"}]
        pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", sep=";", index=False)
        assert list(read(tmp_path / "a.csv").rows) == rows

    def test_the_line_of_excel_decides(self, tmp_path):
        path = write(tmp_path, "a.csv", "sep=;\r\ntext;label\r\na, b;1\r\n")
        records = read(path)
        assert (list(records.rows), list(records.lines)) == ([{"text": "a, b", "label": "1"}], [3])
        assert records.notes == ()

    @pytest.mark.parametrize(
        "content", ["text\nI like it; really\n", "a; b\nfilm\nno; not; this\nsong\n"]
    )
    def test_one_column_stays_one(self, tmp_path, content):
        assert len(read(write(tmp_path, "a.csv", content)).columns) == 1

    def test_a_row_that_does_not_fit_is_named(self, tmp_path):
        path = write(tmp_path, "a.csv", "text;label\na;1\nb\nc;0\n")
        assert refused(path).message == (
            f"{path}, line 3: 1 fields, but the header names 2 (text, label)"
        )

    def test_a_file_over_what_is_probed(self, tmp_path):
        rows = "".join(f'"{"word; " * 2000}";{i % 2}\n' for i in range(60))
        records = read(write(tmp_path, "a.csv", f"text;label\n{rows}"))
        assert (len(records), records.columns) == (60, ("text", "label"))


class TestBlankLines:
    """A blank line is an empty cell of a table with one column, and nothing in others."""

    @pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
    def test_as_pandas_reads_them_with_blank_lines(self, tmp_path, name, ends):
        import pandas

        path = write(tmp_path, name, "text\nalpha\n\nbeta\n \ngamma\n".replace("\n", ends))
        records = read(path)
        theirs = pandas.read_csv(path, skip_blank_lines=False, keep_default_na=False)
        assert [row["text"] for row in records.rows] == theirs["text"].tolist()
        assert list(records.lines) == [2, 3, 4, 5, 6]
        (note,) = records.notes
        told = "empty cells, as blank lines are in one column: 1, the first on line 3"
        assert note == f"{path}: {told}"

    @pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
    def test_none_before_the_names_and_after_the_last(self, tmp_path, end):
        records = read(write(tmp_path, "a.csv", f'\n\ntext\na\n\n""\nb{end}'))
        assert ([*records.lines], [row["text"] for row in records.rows]) == (
            [4, 5, 6, 7],
            ["a", "", "", "b"],
        )

    def test_in_other_tables_they_are_nothing(self, tmp_path):
        records = read(write(tmp_path, "a.csv", "text,label\n\na,1\n\nb,0\n"))
        assert ([*records.lines], records.notes) == ([3, 5], ())

    def test_a_column_by_its_number(self, tmp_path):
        records = read(write(tmp_path, "a.csv", "a\n\nb\n"), columns={"text": "1"})
        assert [row["1"] for row in records.rows] == ["a", "", "b"]


class TestNumberedColumns:
    """Tables whose first line is a record."""

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.csv", "good film,1\n电影不好看,0\n"),
            ("a.csv", "good film;1\n电影不好看;0\n"),
            ("a.tsv", "good film\t1\n电影不好看\t0\n"),
            ("a.jsonl", '["good film", "1"]\n["电影不好看", "0"]\n'),
            ("a.json", '[["good film", "1"], ["电影不好看", "0"]]'),
        ],
    )
    def test_have_all_records(self, tmp_path, name, content):
        path = write(tmp_path, name, content)
        records = read(path, columns={"text": "1", "label": "-1"})
        assert records.mapped({"text": "1", "label": "-1"}, ["text", "label"]).rows == ROWS
        assert records.where(0).endswith(("line 1", "row 1"))
        assert "is a record: 'good film', '1'" in records.notes[-1]

    def test_a_value_may_be_the_number_of_a_column(self, tmp_path):
        path = write(tmp_path, "a.csv", "good film,1\nbad film,0\n")
        assert len(read(path, columns={"text": "1"})) == 2

    @pytest.mark.parametrize("header", ["text,1", "1,2", "x,text"])
    def test_names_that_are_there_win(self, tmp_path, header):
        records = read(write(tmp_path, "a.csv", f"{header}\na,b\n"), columns={"text": "1"})
        assert (len(records), records.columns) == (1, tuple(header.split(",")))

    @pytest.mark.parametrize("line", ["good,good", "good,"])
    def test_cells_that_could_be_no_names(self, tmp_path, line):
        path = write(tmp_path, "a.csv", f"{line}\nfilm,1\n")
        assert "data.columns.text=1" in refused(path).hint
        assert len(read(path, columns={"text": "1"})) == 2

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("I liked it a lot and more,pos\nb,neg\n", True),
            ("a,0.5\nb,1.5\n", True),
            ("good,pos\nbad,neg\nfine,pos\n", True),
            ("0,1\na,b\n", False),  # as pandas calls columns without names
            ("review,stars\na,1\nb,2\n", False),
            ("text,2019\na,1\nb,2\n", False),
        ],
    )
    def test_names_that_look_like_a_record_are_told(self, tmp_path, content, told):
        notes = read(write(tmp_path, "a.csv", content)).notes
        assert any("is taken for the names" in note for note in notes) is told

    @pytest.mark.parametrize("content", ["good film,1\nb,0\n", '["good film","1"]\n["b","0"]\n'])
    def test_are_the_way_out_of_missing_names(self, tmp_path, content):
        path = write(tmp_path, "a.jsonl" if content[0] == "[" else "a.csv", content)
        with pytest.raises(DataError, match="no column 'text'") as caught:
            read(path).mapped({}, ["text", "label"])
        assert caught.value.hint.endswith(
            "If line 1 is a record and names no columns, number them: "
            "data.columns.text=1 data.columns.label=2"
        )


class TestLists:
    """JSON whose records are lists: the first names the columns."""

    @pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
    def test_a_line(self, tmp_path, ends):
        content = ends.join(['["text", "label"]', '["good film", "1"]', '["电影不好看", "0"]'])
        records = read(write(tmp_path, "a.jsonl", content))
        assert (list(records.rows), list(records.lines)) == (ROWS, [2, 3])

    def test_an_array(self, tmp_path):
        content = [["text", "label"], *([*row.values()] for row in ROWS)]
        records = read(write(tmp_path, "a.json", json.dumps(content, indent=1)))
        assert list(records.rows) == ROWS
        assert records.where(0).endswith("row 2")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ('["a", 1]\n["b", 0]\n', "line 1: expected an object, found a list that names no"),
            ('["a", "a"]\n["b", 0]\n', "line 1: expected an object, found a list that names no"),
            ('["a", "b"]\n["b"]\n', "line 2: 1 values, but line 1 is a list of 2"),
            ('["a", "b"]\n{"a": 1}\n', "line 2: a dict, but line 1 is a list of 2"),
            ('[{"a": 1}]\n[{"a": 2}]\n', "line 1: expected an object, found a list"),
            ('{"a": 1}\n["b"]\n', "line 2: expected an object, found list"),
        ],
    )
    def test_others_are_named(self, tmp_path, content, said):
        path = write(tmp_path, "a.jsonl", content)
        assert refused(path).message.startswith(f"{path}, {said}")


class TestRowsUnderData:
    def test_are_the_records(self, tmp_path):
        path = write(tmp_path, "a.json", json.dumps({"version": "1.0", "data": ROWS}, indent=1))
        records = read(path)
        assert list(records.rows) == ROWS
        assert records.notes == (f"{path}: the records are those under 'data'",)

    @pytest.mark.parametrize("orient", ["columns", "index", "split", "table", "records", "values"])
    def test_of_pandas(self, tmp_path, orient):
        import pandas

        pandas.DataFrame(ROWS).to_json(tmp_path / "a.json", orient=orient)
        numbers = {"text": "1", "label": "2"} if orient == "values" else {}
        records = read(tmp_path / "a.json", columns=numbers).mapped(numbers, ["text", "label"])
        own = ("text", "label")
        assert [{name: row[name] for name in own} for row in records.rows] == ROWS

    def test_one_object_over_several_lines_is_a_record(self, tmp_path):
        records = read(write(tmp_path, "a.json", json.dumps(ROWS[0], indent=1)))
        assert list(records.rows) == ROWS[:1]


class TestLines:
    @pytest.mark.parametrize(
        ("name", "content", "lines"),
        [
            ("a.jsonl", '\n{"a": 1}\n\n  \n{"a": 2}\n', [2, 5]),
            ("a.csv", "a,b\n1,2\n\n3,4\n", [2, 4]),
            ("a.tsv", "a\tb\n1\t2\n\n3\t4\n", [2, 4]),
            ("a.csv", 'a,b\n"two\nlines",2\n3,4\n', [2, 4]),
            ("a.csv", 'a,b\r\n"two\r\nlines",2\r\n3,4\r\n', [2, 4]),
        ],
    )
    def test_are_remembered(self, tmp_path, name, content, lines):
        assert list(read(write(tmp_path, name, content)).lines) == lines


class TestQuotes:
    def test_are_plain_characters_in_tsv(self, tmp_path):
        path = write(tmp_path, "a.tsv", 'text\tlabel\n"Well, he said\t1\nit\'s 5" long\t0\n')
        assert [row["text"] for row in read(path).rows] == ['"Well, he said', "it's 5\" long"]

    def test_enclose_fields_in_csv(self, tmp_path):
        path = write(tmp_path, "a.csv", 'text,label\n"a, ""b""\nc",1\n')
        assert read(path).rows[0]["text"] == 'a, "b"\nc'

    def test_enclose_fields_in_tsv_where_told(self, tmp_path):
        path = write(tmp_path, "a.tsv", 'text\tlabel\n"a\tb"\t1\n')
        assert read(path, quoting="standard").rows[0]["text"] == "a\tb"

    def test_are_plain_characters_in_csv_where_told(self, tmp_path):
        path = write(tmp_path, "a.csv", 'text,label\n"a,1\n')
        assert read(path, quoting="none").rows[0]["text"] == '"a'

    @pytest.mark.parametrize("content", ['a,b\n1,2\n"x"y,3\n4,5\n', 'a,b\n1,2\n"x,3\n4,5\n'])
    def test_that_do_not_match_name_the_line_where_the_record_begins(self, tmp_path, content):
        path = write(tmp_path, "a.csv", content)
        error = refused(path)
        assert error.message.startswith(f"{path}, line 3: ")
        assert "data.quoting=none" in error.hint

    @pytest.mark.parametrize(("name", "near"), [("Standard", "standard"), ("of", "none")])
    def test_unknown_quoting(self, tmp_path, name, near):
        error = refused(write(tmp_path, "a.csv", CONTENTS["a.csv"]), quoting=name)
        assert error.message == f"no quoting is called '{name}'"
        assert near in error.hint


class TestEncodingErrors:
    @pytest.mark.parametrize("name", CONTENTS)
    def test_name_the_line_and_the_byte(self, tmp_path, name):
        path = write(tmp_path, name, b"first\nsecond\nthi\xffrd\n")
        error = refused(path)
        assert error.message == f"{path}, line 3: not valid UTF-8 (byte 0xff)"

    def test_chinese_in_gb18030_is_told(self, tmp_path):
        path = write(tmp_path, "a.tsv", CONTENTS["a.tsv"], "gb18030")
        assert "data.encoding=gb18030" in refused(path).hint

    def test_utf16_is_told(self, tmp_path):
        path = write(tmp_path, "a.tsv", CONTENTS["a.tsv"], "utf-16")
        assert "data.encoding=utf-16" in refused(path).hint

    def test_unknown_encoding(self, tmp_path):
        path = write(tmp_path, "a.tsv", CONTENTS["a.tsv"])
        assert refused(path, encoding="utf-99").message == "no encoding is called 'utf-99'"

    @pytest.mark.parametrize("name", ["undefined", "utf\0-8", "\udc80", ""])
    def test_names_that_are_no_encoding(self, tmp_path, name):
        path = write(tmp_path, "a.tsv", CONTENTS["a.tsv"])
        assert refused(path, encoding=name).message == f"no encoding is called '{name}'"

    @pytest.mark.parametrize("content", [b"a-,,", b"a\xff"])
    def test_encodings_that_know_no_place(self, tmp_path, content):
        path = write(tmp_path, "a.tsv", content)
        assert "not valid PUNYCODE" in refused(path, encoding="punycode").message

    def test_wrong_encoding_is_named(self, tmp_path):
        path = write(tmp_path, "a.tsv", b"text\n\x81\x20\n")
        assert refused(path, encoding="gb18030").message.startswith(
            f"{path}, line 2: not valid GB18030"
        )


class TestEmpty:
    @pytest.mark.parametrize("name", CONTENTS)
    @pytest.mark.parametrize("content", [b"", b"\n\n", b" \n\t\n", b"\xef\xbb\xbf"])
    def test_file(self, tmp_path, name, content):
        path = write(tmp_path, name, content)
        assert refused(path).message == f"{path}: no records in it"

    @pytest.mark.parametrize(
        ("name", "content"), [("a.csv", "a,b\n"), ("a.tsv", "a\tb"), ("a.json", "[]")]
    )
    def test_header_only(self, tmp_path, name, content):
        path = write(tmp_path, name, content)
        assert refused(path).message == f"{path}: no records in it"

    def test_parquet_table(self, tmp_path):
        parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
        assert "no records" in refused(tmp_path / "a.parquet").message


class TestTableErrors:
    @pytest.mark.parametrize(
        ("name", "line"), [("a.csv", "x,y,z"), ("a.csv", "x"), ("a.tsv", "x\ty\tz"), ("a.tsv", "x")]
    )
    def test_wrong_number_of_fields(self, tmp_path, name, line):
        between = "," if name == "a.csv" else "\t"
        path = write(tmp_path, name, f"text{between}label\na{between}1\n\n{line}\n")
        fields = line.count(between) + 1
        assert refused(path).message == (
            f"{path}, line 4: {fields} fields, but the header names 2 (text, label)"
        )

    @pytest.mark.parametrize(("name", "other"), [("a.csv", "none"), ("a.tsv", "standard")])
    def test_wrong_number_of_fields_suggests_the_other_quoting(self, tmp_path, name, other):
        path = write(tmp_path, name, "text\nx\ty,z\n")
        assert refused(path).hint.endswith(f"data.quoting={other}")

    @pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
    def test_header_of_a_second_file(self, tmp_path, name):
        between = "," if name == "a.csv" else "\t"
        text = "text, label\na,1\ntext,label\nb,0\n text,label\n".replace(",", between)
        found = read(write(tmp_path, name, text))
        assert found.rows == [{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]
        assert found.lines == [2, 4]
        assert any("line 3 and 1 more, the names of the columns again" in n for n in found.notes)
        # In another order everything after it would be mixed up.
        path = write(tmp_path, name, text.replace(f"text{between}label", f"label{between}text"))
        assert "line 3: the names of the columns again, in another" in refused(path).message
        # A single column may have its own name as a text.
        assert len(read(write(tmp_path, name, "text\na\ntext\n"))) == 2

    @pytest.mark.parametrize("header", ["text,text", "text,", " text,text "])
    def test_header_with_repeated_or_empty_names(self, tmp_path, header):
        path = write(tmp_path, "a.csv", f"\n{header}\na,b\n")
        assert refused(path).message.startswith(f"{path}, line 2: the header has")

    @pytest.mark.parametrize(
        "content",
        [
            "text,\na,\nb,left over\n",  # something stands in the last column
            ",label\na film,1\n",  # not an index: the texts themselves
            ",text,\nx,a,\n",  # no index, though nothing stands in the last column
            "text,,\na,,left over\n",
            "text,,label\na,,1\n",
            '""\n1\n',
        ],
    )
    def test_columns_without_names_that_hold_something(self, tmp_path, content):
        path = write(tmp_path, "a.csv", content)
        assert refused(path).message.startswith(f"{path}, line 1: the header has")


class TestJsonErrors:
    @pytest.mark.parametrize("broken", ['{"a": 1', "{'a': 1}", '{"a": 1} {"a": 2}', "[" * 100_000])
    def test_broken_line(self, tmp_path, broken):
        path = write(tmp_path, "a.jsonl", f'{{"a": 1}}\n\n{broken}\n{{"a": 2}}\n')
        assert refused(path).message.startswith(f"{path}, line 3: not valid JSON")

    @pytest.mark.parametrize(
        ("value", "kind"), [("1", "int"), ('"a"', "str"), ("null", "NoneType")]
    )
    def test_line_that_is_no_object(self, tmp_path, value, kind):
        path = write(tmp_path, "a.jsonl", f'{{"a": 1}}\n{value}\n')
        assert refused(path).message == f"{path}, line 2: expected an object, found {kind}"

    def test_broken_array(self, tmp_path):
        path = write(tmp_path, "a.json", '[{"a": 1},\n{"a" 2}]')
        error = refused(path)
        assert error.message.startswith(f"{path}: not valid JSON")
        assert "line 2" in error.message

    @pytest.mark.parametrize("broken", ["[" * 100_000, '[{"a": 1}', "[1}"])
    def test_other_broken_arrays(self, tmp_path, broken):
        path = write(tmp_path, "a.json", broken)
        assert refused(path).message.startswith(f"{path}: not valid JSON")

    @pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
    @pytest.mark.parametrize("around", ["{}", "[{}]"])
    def test_number_with_too_many_digits(self, tmp_path, name, around):
        row = '{"text": ' + "9" * 5000 + "}"
        path = write(tmp_path, name, around.replace("{}", row))
        assert "not valid JSON (Exceeds the limit" in refused(path).message

    def test_element_that_is_no_object(self, tmp_path):
        path = write(tmp_path, "a.json", '[{"a": 1}, ["b"]]')
        assert refused(path).message == f"{path}, row 2: expected an object, found list"


class TestParquetErrors:
    @pytest.mark.parametrize("content", [b"", b"not parquet", b"PAR1" + b"\x00" * 64 + b"PAR1"])
    def test_not_parquet(self, tmp_path, content):
        path = write(tmp_path, "a.parquet", content)
        assert refused(path).message.startswith(f"{path}: not a Parquet file")

    @pytest.mark.parametrize(
        "values",
        [
            pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string()),
            pa.array([0, 10**18], pa.int64()).view(pa.timestamp("us")),
            pa.array([0, 2**31 - 1], pa.int32()).view(pa.date32()),
        ],
    )
    def test_value_that_python_cannot_have(self, tmp_path, values):
        parquet.write_table(pa.table({"id": [1, 2], "text": values}), tmp_path / "a.parquet")
        assert refused(tmp_path / "a.parquet").message.startswith(
            f"{tmp_path / 'a.parquet'}, column 'text': a value that cannot be read"
        )

    def test_cut_in_half(self, tmp_path):
        parquet.write_table(pa.Table.from_pylist(ROWS * 100), tmp_path / "a.parquet")
        raw = (tmp_path / "a.parquet").read_bytes()
        path = write(tmp_path, "b.parquet", raw[: len(raw) // 2])
        assert refused(path).message.startswith(f"{path}: not a Parquet file")


class TestMissing:
    def test_file_suggests_the_nearest(self, tmp_path):
        write(tmp_path, "train.tsv", "a")
        error = refused(tmp_path / "trian.tsv")
        assert error.message == f"{tmp_path / 'trian.tsv'}: no such file. Did you mean 'train.tsv'?"

    def test_folder_of_the_file(self, tmp_path):
        assert refused(tmp_path / "no" / "a.tsv").message.endswith("no such file.")

    @pytest.mark.parametrize("name", ["folder", "folder.tsv"])
    def test_a_folder_is_no_file(self, tmp_path, name):
        (tmp_path / name).mkdir()
        assert (
            refused(tmp_path / name).message == f"{tmp_path / name}: is a folder, expected a file"
        )

    def test_unknown_suffix(self, tmp_path):
        path = write(tmp_path, "a.dat", "a")
        assert refused(path).message == f"{path}: cannot tell the format from the name"

    @pytest.mark.parametrize(
        ("name", "what", "way_out"),
        [
            ("a.xlsx", "an Excel workbook", "save it as CSV"),
            ("a.xls", "an Excel workbook", "save it as CSV"),
            ("a.docx", "a Word document", "Export its text"),
            ("a.pdf", "a PDF file", "Export its text"),
            ("a.jsonl.zst", "a compressed file (.zst)", "zstd -d"),
            ("a.csv.xz", "a compressed file (.xz)", "xz -dk"),
            ("a.csv.bz2", "a compressed file (.bz2)", "bzip2 -dk"),
            ("a.zip", "a compressed file (.zip)", "unzip"),
        ],
    )
    def test_other_formats_are_named(self, tmp_path, name, what, way_out):
        path = write(tmp_path, name, b"\0\1\2")
        error = refused(path)
        assert error.message == f"{path}: is {what}"
        assert way_out in error.hint

    def test_a_device_is_no_file(self):
        assert refused("/dev/null").message == "/dev/null: is neither a file nor a pipe"

    @pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".csv", "a\0b.tsv"])
    def test_impossible_names(self, name):
        assert "no such file" in refused(name).message

    def test_unreadable_file(self, tmp_path, monkeypatch):
        path = write(tmp_path, "a.tsv", "a\nb\n")

        def refuse(*args: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(byte_stream, "open", refuse, raising=False)
        assert refused(path).message == f"{path}: cannot be read (Permission denied)"


@pytest.mark.parametrize(
    "name", ["mrpc/train.tsv", "chnsenticorp/dev.tsv", "tatoeba-zh-en/train.tsv"]
)
def test_public_data_read_without_loss(data_folder, name):
    lines = (data_folder / name).read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert ["\t".join(row.values()) for row in read(data_folder / name).rows] == lines[1:]


def test_libraries_of_tables_stay_out_until_a_table_is_read(tmp_path):
    """Each costs a second of every start."""
    path = write(tmp_path, "a.jsonl", CONTENTS["a.jsonl"])
    program = (
        "import sys\nfrom pretune.data.readers.files import read\n"
        f"assert len(read({str(path)!r}).rows) == 2\n"
        "print({'pyarrow', 'datasets', 'torch', 'pandas'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


class TestGzip:
    @pytest.mark.parametrize("name", [*CONTENTS, "a.conll"])
    @pytest.mark.parametrize("ending", ["", ".gz"])
    def test_rows(self, tmp_path, name, ending):
        content = CONTENTS.get(name, "EU\tB-ORG\nrejects\tO\n")
        plain = read(write(tmp_path, name, content))
        packed = read(write(tmp_path, name + ending, gzip.compress(content.encode())))
        assert (packed.rows, packed.columns) == (plain.rows, plain.columns)

    def test_text_and_columns_in_text_are_told_apart(self, tmp_path):
        novel = write(tmp_path, "a.txt.gz", gzip.compress(b"One.\n\nTwo.\n"))
        assert [row["text"] for row in read(novel).rows] == ["One.", "Two."]
        tagged = write(tmp_path, "b.txt.gz", gzip.compress(b"EU\tB-ORG\nrejects\tO\n"))
        assert read(tagged).columns == ("tokens", "ner_tags")

    def test_parallel_text(self, tmp_path):
        first = write(tmp_path, "a.de.gz", gzip.compress(b"eins\nzwei\n"))
        second = write(tmp_path, "a.en", "one\ntwo\n")
        assert read(f"{first},{second}").rows[1] == {"source": "zwei", "target": "two"}

    def test_a_packed_parquet_file_is_named(self, tmp_path):
        path = write(tmp_path, "a.parquet.gz", gzip.compress(b"PAR1"))
        error = refused(path)
        assert "a gzip file" in error.message
        assert "gunzip" in error.hint

    def test_the_memory_is_not_filled(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decode, "MOST_UNPACKED", 20)
        path = write(tmp_path, "a.csv.gz", gzip.compress(b"text\n" + b"word\n" * 900))
        assert "unpacks to over 20 characters" in refused(path).message


class TestContent:
    @pytest.mark.parametrize(
        "page", ["<!DOCTYPE html>\n<p>404</p>", "\n <html><body>", '<?xml version="1.0"?>\n<a/>']
    )
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.conll"])
    def test_a_page_is_no_data(self, tmp_path, name, page):
        path = write(tmp_path, name, page, "utf-8-sig")
        assert refused(path).message == f"{path}: is a page of HTML or XML, not {path.suffix}"

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
    def test_json_is_no_table(self, tmp_path, name):
        path = write(tmp_path, "a.csv", CONTENTS[name])
        assert refused(path).message == f"{path}: is JSON, not a table"

    @pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
    @pytest.mark.parametrize("other", ["a.jsonl", "a.json"])
    def test_a_table_is_no_json(self, tmp_path, name, other):
        path = write(tmp_path, other, CONTENTS[name])
        assert refused(path).message == f"{path}: is not JSON; it looks like a table"

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.csv", '"{""a"": 1}",label\nx,1\n'),
            ("a.csv", "<b>,label\nx,1\n"),
            ("a.tsv", "[text]\tlabel\nx\t1\n"),
        ],
    )
    def test_odd_headers_are_headers(self, tmp_path, name, content):
        assert len(read(write(tmp_path, name, content)).rows) == 1


class TestPipes:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
    @pytest.mark.parametrize("named", [True, False])
    def test_rows(self, tmp_path, name, named):
        path = tmp_path / (name if named else "63")
        os.mkfifo(path)
        thread = threading.Thread(target=path.write_bytes, args=(CONTENTS[name].encode(),))
        thread.start()
        records = read(path)
        thread.join()
        assert (records.rows, records.origin) == (ROWS, str(path))
        assert read(path).rows == ROWS  # a second pass

    @pytest.mark.parametrize("delimiter", ";|")
    def test_other_delimiters_as_in_files(self, tmp_path, delimiter):
        content = CONTENTS["a.csv"].replace(",", delimiter)
        assert self.piped(tmp_path, content).rows == ROWS
        assert self.piped(tmp_path, f"sep={delimiter}\n{content}").rows == ROWS

    def test_words_with_tags(self, tmp_path):
        records = self.piped(tmp_path, "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n")
        assert [row["tokens"] for row in records.rows] == [["EU", "rejects"], ["Peter"]]

    def test_plain_text_with_semicolons(self, tmp_path):
        content = "I like it; really\n\nno; not; this\nsong\n"
        assert len(self.piped(tmp_path, content)) == 2

    def piped(self, folder, content):
        path = folder / "63"
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        thread = threading.Thread(target=path.write_text, args=(content,))
        thread.start()
        records = read(path)
        thread.join()
        return records

    def test_lines_of_words(self, tmp_path):
        path = tmp_path / "63"
        os.mkfifo(path)
        thread = threading.Thread(target=path.write_bytes, args=(b"One.\n\nTwo.\n",))
        thread.start()
        assert [row["text"] for row in read(path).rows] == ["One.", "Two."]
        thread.join()


class TestLongLines:
    @pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
    def test_are_refused_before_they_are_read(self, tmp_path, monkeypatch, name):
        monkeypatch.setattr(delimited, "LONGEST_RECORD", 1 << 16)
        monkeypatch.setattr(byte_stream, "READ_BYTES", 1 << 12)
        path = write(tmp_path, name, "text\nshort\n" + "x" * (1 << 20) + "\n")
        tracemalloc.start()
        try:
            assert refused(path).message.startswith(f"{path}, line 3: over 65,536 characters")
            assert tracemalloc.get_traced_memory()[1] < 1 << 19
        finally:
            tracemalloc.stop()

    def test_fields_of_many_lines_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(delimited, "LONGEST_RECORD", 200_000)
        before = csv.field_size_limit(100)
        try:
            path = write(tmp_path, "a.csv", 'text\n"' + "word\n" * 50_000 + '"\n')
            error = refused(path)
        finally:
            csv.field_size_limit(before)
        assert error.message == f"{path}, line 2: field larger than field limit (200000)"
        assert error.hint == "A field may have 200,000 characters."

    @pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
    def test_many_lines_are_not_long(self, tmp_path, monkeypatch, end):
        monkeypatch.setattr(delimited, "LONGEST_RECORD", 100)
        monkeypatch.setattr(byte_stream, "READ_BYTES", 16)
        path = write(tmp_path, "a.tsv", end.join(["text", *["word " * 9] * 99]))
        assert len(read(path).rows) == 99


class TestParts:
    """Files that are read some rows at a time, with the same records as the whole."""

    ROWS = 7

    def files(self, folder: Path) -> dict[str, str]:
        """Tables of each format, with quoted line ends, blank lines and old line ends."""
        rows = [(f"text {i}", f"l{i % 2}") for i in range(self.ROWS)]
        quoted = "".join(f'"{text}\n, more",{label}\r\n' for text, label in rows)
        return {
            "a.csv": "text,label\r\n" + quoted,
            "b.csv": "sep=;\ntext;label\n" + "".join(f"{t};{x}\n\n" for t, x in rows),
            "c.tsv": "text\tlabel\r" + "".join(f"{t}\t{x}\r" for t, x in rows),
            "d.tsv": "text\tlabel\n" + "".join(f'"{t}\t{x}\n' for t, x in rows)[:-1],
            "e.csv": "text\n" + "".join(f"{t}\n\n" for t, _ in rows),
            "f.jsonl": "".join(json.dumps({"text": t, "label": x}) + "\n\n" for t, x in rows),
            "g.jsonl": "[" + ",".join(json.dumps({"text": t}) for t, _ in rows) + "]",
            "h.json": "[" + ",".join(json.dumps({"text": t}) for t, _ in rows) + "]",
        }

    @pytest.mark.parametrize("size", [1, 3, 7, 100])
    @pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
    def test_are_the_same_records(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, chunk: int
    ) -> None:
        monkeypatch.setattr(byte_stream, "READ_BYTES", chunk)
        monkeypatch.setattr(delimited, "_PROBE_CHARS", 20)
        for name, content in self.files(tmp_path).items():
            path = tmp_path / name
            path.write_bytes(content.encode())
            whole, parts = read(path), [*read_parts(path, size)]
            assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1), name
            joined = Records.joined(parts)
            assert joined.rows == [*whole.rows], name
            assert [joined.where(i) for i in range(len(joined))] == [
                whole.where(i) for i in range(len(whole))
            ], name
            assert {*joined.columns} == {*whole.columns}

    def test_of_parquet(self, tmp_path: Path) -> None:
        rows = {"text": [f"t{i}" for i in range(7)], "labels": [["a"] * i for i in range(7)]}
        parquet.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=3)
        whole, parts = read(tmp_path / "a.parquet"), [*read_parts(tmp_path / "a.parquet", 2)]
        assert Records.joined(parts).rows == [*whole.rows]
        assert max(map(len, parts)) <= 2
        assert parts[-1].where(len(parts[-1]) - 1) == whole.where(6)

    def test_are_read_no_further_than_they_are_asked_for(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("text,label\n" + "a,b\n" * 1_000_000, encoding="utf-8")
        read_bytes = 0

        def count(number: int) -> None:
            nonlocal read_bytes
            read_bytes += number

        assert len(next(read_parts(path, 10, on_bytes=count))) == 10
        assert read_bytes <= 2 << 20

    def test_a_bad_line_is_an_error_when_it_is_reached(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("text,label\na,b\nc,d\ne\n", encoding="utf-8")
        parts = read_parts(path, 2)
        assert len(next(parts)) == 2
        with pytest.raises(DataError, match="line 4: 1 fields"):
            next(parts)
