"""Tables in memory become the same records, whatever makes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from pretune.data.readers import in_memory
from pretune.data.readers.files import read
from pretune.data.readers.in_memory import (
    from_memory,
    held_data,
    is_from_memory,
    is_held,
    is_table,
    memory_name,
    plain_items,
)
from pretune.data.records import Records
from pretune.errors import DataError

ROWS = [{"text": "好 film", "label": "good"}, {"text": "a\tfilm", "label": "bad"}]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}

#: The same two rows, as their makers hold them.
FORMS: dict[str, Callable[[], Any]] = {
    "list of dicts": lambda: ROWS,
    "dict of columns": lambda: COLUMNS,
    "dict of series": lambda: {name: pd.Series(own) for name, own in COLUMNS.items()},
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas, filtered": lambda: pd.DataFrame([*ROWS, {"text": "c", "label": "d"}]).iloc[:2],
    "pandas, categorical": lambda: pd.DataFrame(ROWS).astype({"label": "category"}),
    "pandas, of Arrow": lambda: pd.DataFrame(ROWS).convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda: pl.DataFrame(ROWS),
    "polars, lazy": lambda: pl.DataFrame(ROWS).lazy(),
    "polars, in chunks": lambda: pl.concat(
        [pl.DataFrame(ROWS[:1]), pl.DataFrame(ROWS[1:])], rechunk=False
    ),
    "polars, categorical": lambda: pl.DataFrame(ROWS).with_columns(
        pl.col("label").cast(pl.Categorical)
    ),
    "Arrow": lambda: pa.Table.from_pylist(ROWS),
    "Arrow, in chunks": lambda: pa.concat_tables([pa.Table.from_pylist([row]) for row in ROWS]),
    "Arrow, dictionaries": lambda: pa.table(
        {"text": COLUMNS["text"], "label": pa.array(COLUMNS["label"]).dictionary_encode()}
    ),
    "Arrow batch": lambda: pa.RecordBatch.from_pylist(ROWS),
    "datasets": lambda: datasets.Dataset.from_list(ROWS),
    "datasets, selected": lambda: datasets.Dataset.from_list(ROWS[::-1]).select([1, 0]),
    "datasets, streaming": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_in_every_form(form: str) -> None:
    table = FORMS[form]()
    records = from_memory(table)
    assert is_table(table)
    assert list(records.rows) == ROWS
    assert records.columns == ("text", "label")
    assert all(type(value) is str for row in records.rows for value in row.values())
    assert memory_name(records) == memory_name(from_memory(ROWS))


class TestMissing:
    def test_pandas(self) -> None:
        frame = pd.DataFrame(
            {
                "text": ["a", None, np.nan],
                "whole": pd.array([1, None, 3], dtype="Int64"),
                "flag": pd.array([True, pd.NA, False], dtype="boolean"),
                "word": pd.array(["x", pd.NA, "z"], dtype="string"),
                "kind": pd.Categorical(["u", None, "v"]),
                "time": pd.to_datetime(["2026-01-01", None, "2026-01-03"]),
                "number": [0.5, np.nan, 2.0],
            }
        )
        rows = from_memory(frame).rows
        assert rows[1] == dict.fromkeys(frame.columns)
        assert rows[0]["whole"] == 1
        assert type(rows[0]["whole"]) is int
        assert rows[0]["flag"] is True
        assert rows[2]["text"] is None
        assert [row["kind"] for row in rows] == ["u", None, "v"]
        assert rows[2]["number"] == 2.0

    def test_polars_tells_null_from_nan(self) -> None:
        rows = from_memory(pl.DataFrame({"n": [None, math.nan, 1.0]})).rows
        assert rows[0]["n"] is None
        assert math.isnan(rows[1]["n"])

    def test_arrow(self) -> None:
        table = pa.table({"text": pa.chunked_array([["a"], [None]]), "n": [1, None]})
        assert list(from_memory(table).rows) == [{"text": "a", "n": 1}, {"text": None, "n": None}]

    def test_in_a_series_it_is_an_empty_text(self) -> None:
        assert plain_items(pd.Series(["a", None])) == ["a", ""]
        assert plain_items(pl.Series(["a", None])) == ["a", ""]
        assert plain_items(pa.chunked_array([["a"], [None]])) == ["a", ""]
        assert plain_items(np.array(["a", "b"])) == ["a", "b"]
        assert plain_items(["a"]) is None


def test_numbers_of_numpy_and_nested_values_become_plain() -> None:
    frame = pd.DataFrame({"tokens": [np.array(["a", "b"])], "n": [np.int64(3)]}, dtype=object)
    (row,) = from_memory(frame).rows
    assert row == {"tokens": ["a", "b"], "n": 3}
    assert type(row["n"]) is int
    assert list(from_memory([{"x": (np.float32(0.5), {"y": np.bool_(True)})}]).rows) == [
        {"x": [0.5, {"y": True}]}
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_names_of_class_labels_are_known(streaming: bool) -> None:
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    data: Any = datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features)
    data = data.to_iterable_dataset() if streaming else data.with_format("numpy")
    assert from_memory(data).categories == {"label": ["no", "yes"]}


def test_errors_name_the_table_and_the_row() -> None:
    records = from_memory(pd.DataFrame(ROWS, index=[7, 9]))
    assert records.where(1, "label") == "the DataFrame, row 2, column 'label'"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (3, "an int is no table"),
        ("secret", "a str is no table"),
        ({"secret"}, "a set is no table"),
        (iter([{"text": "secret"}]), "a list_iterator is no table"),
        ([{"text": "a"}, "secret"], "the list, row 2: expected a dict of columns, found a str"),
        ({"text": "secret"}, "the dict, column 'text': expected a list of values, found a str"),
        ({"text": ["secret"], "label": []}, "different lengths: 'text: 1', 'label: 0'"),
        ([], "the list: no records in it"),
        (pd.DataFrame({"text": []}), "the DataFrame: no records in it"),
        (pd.DataFrame([["secret", 1]], columns=["text", "text"]), "two columns are called 'text'"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), "each split: train"),
    ],
)
def test_a_wrong_form_is_an_error_without_the_data(data: Any, what: str) -> None:
    with pytest.raises(DataError, match=what) as error:
        from_memory(data)
    assert "secret" not in str(error.value)


def test_a_stream_has_to_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "STREAM_CHARS", 10)
    endless = datasets.IterableDataset.from_generator(lambda: itertools.repeat({"text": "four"}))
    with pytest.raises(DataError, match=r"over 10 characters in its first 3 rows"):
        from_memory(endless)
    assert len(from_memory(endless.take(2))) == 2


class TestNames:
    def test_equal_rows_have_one_name(self) -> None:
        first = memory_name(from_memory([{"a": 1, "b": None}, {"a": 2}]))
        assert memory_name(from_memory([{"a": 1}, {"b": math.nan, "a": 2}])) == first
        assert first.startswith("from memory, 2 rows, sha256 ")
        assert is_from_memory(first)
        assert not is_from_memory("train.tsv")

    @pytest.mark.parametrize("other", [[{"a": 1}], [{"a": 2}, {"a": 1}], [{"a": 1}, {"a": "2"}]])
    def test_other_rows_have_another(self, other: Any) -> None:
        assert memory_name(from_memory(other)) != memory_name(from_memory([{"a": 1}, {"a": 2}]))

    def test_categories_are_part_of_it(self) -> None:
        rows, known = [{"a": 1}], {"a": ["x", "y"]}
        first, second = Records(rows, "x"), Records(rows, "x", categories=known)
        assert memory_name(first) != memory_name(second)

    def test_data_are_read_by_their_name_while_they_are_handed_in(self) -> None:
        with held_data(train=ROWS, validation=None) as names:
            assert [*names] == ["train"]
            assert is_held(names["train"])
            assert read(names["train"], max_chars=7).max_chars == 7
            with held_data(train=[{"a": 1}]):
                assert is_held(names["train"])
        with pytest.raises(DataError, match=r"hand the same data in again: pretune\.resume"):
            read(names["train"])
