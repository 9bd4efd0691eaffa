"""Datasets by their Hub id, with the library's `load_dataset` replaced: no network."""

from __future__ import annotations

import datasets
import pytest

from pretune.data.readers.files import read
from pretune.errors import DataError


@pytest.fixture
def calls(monkeypatch):
    """Every call's arguments; each gives the same small table."""
    seen = []
    labels = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)

    def load_dataset(name, config=None, *, split):
        seen.append((name, config, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return seen


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name:train", ("owner/name", None, "train")),
        ("nyu-mll/glue:mrpc:validation", ("nyu-mll/glue", "mrpc", "validation")),
        ("a.b/c-d_e:2.0.0:test", ("a.b/c-d_e", "2.0.0", "test")),
        ("owner/name:train+test", ("owner/name", None, "train+test")),
        ("owner/name:train[:10%]", ("owner/name", None, "train[:10%]")),
        ("owner/name:config:train[5:-10]", ("owner/name", "config", "train[5:-10]")),
    ],
)
def test_id_is_taken_apart(calls, source, expected):
    read(source)
    assert calls == [expected]


@pytest.mark.parametrize(
    "source", ["owner/name", "name:train", "owner/name:", "a/b:c:d:e", "owner/name:../x", "a/b/c:d"]
)
def test_what_is_no_id_is_a_missing_file(calls, source):
    with pytest.raises(DataError, match="no such file"):
        read(source)
    assert calls == []


def test_rows(calls):
    assert list(read("owner/name:train").rows) == [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
    ]


def test_class_labels_are_categories(calls):
    assert read("owner/name:train").categories == {"label": ["neg", "pos"]}


def test_lists_of_class_labels_are_categories(monkeypatch):
    kinds = {"labels": datasets.Sequence(datasets.ClassLabel(names=["joy", "fear"]))}
    table = datasets.Dataset.from_dict({"labels": [[1], []]}, features=datasets.Features(kinds))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: table)
    found = read("owner/name:train")
    assert found.categories == {"labels": ["joy", "fear"]}
    assert found.rows[0] == {"labels": [1]}


def test_categories_follow_a_renamed_column(calls):
    table = read("owner/name:train").mapped({"stars": "label"}, ["stars"])
    assert table.categories == {"stars": ["neg", "pos"]}


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("owner/name:train", "owner/name:train, row 2, column 'text'"),
        ("owner/name:mrpc:train", "owner/name:mrpc:train, row 2, column 'text'"),
    ],
)
def test_errors_name_the_dataset_and_the_row(calls, source, place):
    assert read(source).where(1, "text") == place


def test_local_file_of_that_name_goes_first(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name:train").write_text("x")
    with pytest.raises(DataError, match="cannot tell the format"):
        read("owner/name:train")
    assert calls == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("cannot reach\nmore"), "ConnectionError: cannot reach)"),
        (ValueError(""), "ValueError: ValueError)"),
        (datasets.exceptions.DatasetNotFoundError("gone"), "DatasetNotFoundError: gone)"),
    ],
)
def test_failure_tells_to_use_a_local_file(monkeypatch, error, reason):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        read("owner/name:train")
    assert caught.value.message.startswith("owner/name:train: could not be loaded")
    assert caught.value.message.endswith(reason)
    assert "data.train=FILE" in caught.value.hint
    assert "data.validation=0.1" in caught.value.hint


def test_offline_is_such_a_failure():
    with pytest.raises(DataError, match="could not be loaded from the Hugging Face Hub"):
        read("pretune-tests/surely-absent:train")
