"""What `Records` does with rows: rename, take, name a place, and refuse what is no text."""

from __future__ import annotations

import pytest

from pretune.data.readers.files import read
from pretune.data.records import ColumnNames, Records
from pretune.errors import DataError


def records(*rows: dict, columns: tuple[str, ...] = (), **more) -> Records:
    names = columns or tuple(rows[0])
    return Records(list(rows), "train.tsv", list(range(2, len(rows) + 2)), names, **more)


class TestMapped:
    def test_missing_column_suggests_the_nearest(self):
        with pytest.raises(DataError) as caught:
            records({"sentense": "a", "label": "b"}).mapped({}, ["sentence"])
        assert caught.value.message == (
            "train.tsv: no column 'sentence'; it has 'sentense', 'label'"
        )
        assert "Did you mean 'sentense'?" in caught.value.hint
        assert "data.columns.sentence=COLUMN" in caught.value.hint

    @pytest.mark.parametrize(
        ("name", "columns", "near"),
        [
            ("text", ("TEXT", "label"), "TEXT"),
            ("text", ("id", "sentence"), "sentence"),
            ("label", ("text", "Sentiment"), "Sentiment"),
            ("label", ("text", "table", "labels"), "labels"),
            ("output", ("instruction", "context", "response"), "response"),
            ("ner_tags", ("tokens", "pos_tags", "tags"), "tags"),
        ],
    )
    def test_missing_column_suggests_what_it_is_often_called(self, name, columns, near):
        with pytest.raises(DataError) as caught:
            records(dict.fromkeys(columns, "a")).mapped({}, [name])
        assert caught.value.hint.startswith(f"Did you mean '{near}'? Say which one it is with")

    def test_missing_target_of_a_mapping_names_both(self):
        with pytest.raises(DataError, match=r"no column 'review' \(for 'text'\)"):
            records({"body": "a"}).mapped({"text": "review"}, ["text"])

    def test_renames(self):
        mapped = records({"review": "a", "stars": "5"}).mapped({"text": "review"}, ["text"])
        assert mapped.rows == [{"stars": "5", "text": "a"}]

    def test_column_in_the_way_is_dropped(self):
        mapped = records({"text": "old", "review": "new"}).mapped({"text": "review"}, ["text"])
        assert (mapped.rows, mapped.columns) == ([{"text": "new"}], ("text",))

    def test_two_columns_swap(self):
        swap = {"question": "answer", "answer": "question"}
        mapped = records({"question": "a", "answer": "q"}).mapped(swap, list(swap))
        assert mapped.rows == [{"question": "q", "answer": "a"}]

    def test_columns_keep_their_order(self):
        table = records({"id": 1, "review": "a", "stars": 2}).mapped({"text": "review"}, ["text"])
        assert table.columns == ("id", "text", "stars")
        assert [*table.rows[0]] == ["id", "text", "stars"]

    def test_one_column_may_serve_twice(self):
        both = {"sentence1": "text", "sentence2": "text"}
        mapped = records({"text": "a"}).mapped(both, list(both))
        assert mapped.rows == [{"sentence1": "a", "sentence2": "a"}]

    def test_row_without_the_column(self):
        table = records({"review": "a"}, {"other": "b"}, columns=("review", "other"))
        assert table.mapped({"text": "review"}, ["text"]).rows == [{"text": "a"}, {"other": "b"}]

    def test_mapping_to_itself_changes_nothing(self):
        table = records({"text": "a"})
        assert table.mapped({"text": "text"}, ["text"]) is table

    def test_lines_stay(self):
        table = records({"review": "a"}, {"review": "b"}).mapped({"text": "review"}, ["text"])
        assert table.where(1, "text") == "train.tsv, line 3, column 'review'"

    def test_categories_follow_their_column(self):
        table = records({"fine": 0}, categories={"fine": ["a", "b"]})
        assert table.mapped({"label": "fine"}, ["label"]).categories == {"label": ["a", "b"]}

    def test_categories_of_a_dropped_column_go_with_it(self):
        table = records({"label": 0, "stars": 1}, categories={"label": ["a", "b"]})
        assert table.mapped({"label": "stars"}, ["label"]).categories == {}


class TestGiven:
    def test_must_be_there(self):
        table = records({"text": "a", "body": "b"})
        names = ColumnNames({"text": "x"}, {"text": "bdy"}, ["text", "label"])
        with pytest.raises(DataError, match=r"no column 'bdy' \(for 'text'\)") as caught:
            table.mapped(names, ["text"])
        assert "Did you mean 'body'?" in caught.value.hint

    def test_those_of_a_recipe_need_not(self):
        table = records({"text": "a"})
        assert table.mapped(ColumnNames({"text": "x"}, {}, []), ["text"]).rows == [{"text": "a"}]

    def test_must_be_there_where_not_needed(self):
        with pytest.raises(DataError, match=r"no column 'stars' \(for 'label'\)"):
            records({"text": "a"}).mapped(ColumnNames({}, {"label": "stars"}, ["label"]), ["text"])

    def test_may_be_mapped_twice(self):
        names = ColumnNames({}, {"text": "body"}, ["text"])
        once = records({"text": "a", "body": "b"}).mapped(names, ())
        assert once.mapped(names, ["text"]).rows == [{"text": "b"}]

    def test_must_be_known(self):
        with pytest.raises(DataError, match="no column 'txt'") as caught:
            ColumnNames({}, {"txt": "body"}, ["text", "label"])
        assert caught.value.hint == "Did you mean 'text'?"


class TestText:
    @pytest.mark.parametrize(("value", "text"), [("a", "a"), ("", ""), (3, "3"), (2.5, "2.5")])
    def test_numbers_are_written_out(self, value, text):
        assert records({"text": value}).text(0, "text") == text

    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            (True, "a bool"),
            (["a"], "a list"),
            ({}, "a dict"),
            (b"a", "a bytes"),
            (-float("inf"), "an infinite number"),
        ],
    )
    def test_anything_else_is_refused(self, value, kind):
        with pytest.raises(DataError) as caught:
            records({"text": "ok"}, {"text": value}).text(1, "text")
        assert caught.value.message == (
            f"train.tsv, line 3, column 'text': expected a text, found {kind}"
        )

    @pytest.mark.parametrize("row", [{"text": None}, {"text": float("nan")}, {"other": "a"}])
    def test_nothing_is_an_empty_text(self, row):
        """As a field of a CSV with nothing in it."""
        assert records(row).text(0, "text") == ""

    def test_a_million_characters_are_refused(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text(f"text,label\na,1\n{'x' * 1_000_000},1\n")
        with pytest.raises(DataError) as caught:
            read(path).text(1, "text")
        assert caught.value.message == (
            f"{path}, line 3, column 'text': a text of 1,000,000 characters (the limit is 100,000)"
        )

    def test_limit_can_be_raised(self):
        assert len(records({"text": "x" * 200_000}, max_chars=200_000).text(0, "text")) == 200_000

    def test_whole_surrogate_pair_is_a_character(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n')
        assert read(tmp_path / "a.jsonl").text(0, "text") == "😀"

    def test_half_a_surrogate_pair_is_refused(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "a\\ud83d"}\n')
        with pytest.raises(DataError, match=r"line 2, column 'text': half a character, \\ud83d"):
            read(tmp_path / "a.jsonl").text(1, "text")


class TestHead:
    @pytest.mark.parametrize(("count", "left"), [(None, 3), (5, 3), (3, 3), (2, 2)])
    def test_length(self, count, left):
        assert len(records(*[{"a": 1}] * 3).head(count)) == left

    def test_lines_are_cut_too(self):
        assert records({"a": 1}, {"a": 2}).head(1).where(0) == "train.tsv, line 2"


class TestTake:
    def test_gives_the_rows_in_the_order_asked_for(self):
        table = records({"a": 0}, {"a": 1}, {"a": 2}).take([2, 0])
        assert table.rows == [{"a": 2}, {"a": 0}]

    def test_lines_follow(self):
        table = records({"a": 0}, {"a": 1}, {"a": 2}).take([2, 0])
        assert table.where(0) == "train.tsv, line 4"

    def test_rows_without_lines_keep_their_number(self):
        table = Records([{"a": 0}, {"a": 1}, {"a": 2}], "train.parquet").take([2, 0])
        assert table.where(0) == "train.parquet, row 3"

    def test_rows_without_lines_keep_their_number_when_taken_twice(self):
        table = Records([{"a": 0}, {"a": 1}, {"a": 2}], "train.parquet").take([2, 0]).take([0])
        assert table.where(0) == "train.parquet, row 3"


class TestWhere:
    def test_file_with_lines(self):
        table = Records([{"a": 1}], "train.tsv", [7], ("a",))
        assert table.where(0, "a") == "train.tsv, line 7, column 'a'"

    def test_without_lines(self):
        assert Records([{"a": 1}], "train.parquet").where(0) == "train.parquet, row 1"
