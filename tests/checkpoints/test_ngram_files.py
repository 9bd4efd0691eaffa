"""N-gram models go out and come back, and damage is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pretune.checkpoints.ngram_files import CONFIG, WEIGHTS, load_ngram, save_ngram
from pretune.errors import CheckpointError
from pretune.models.classics.ngram import NGram

TEXTS = [[0, 1, 2, 3, 1, 2, 0, 4, 4, 1, 2, 3], [2, 2, 1, 0, 1, 2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_ngram(NGram.fit(TEXTS, order=4, vocab_size=6), tmp_path)
    return tmp_path


@pytest.mark.parametrize("order", [1, 2, 5])
def test_comes_back_the_same(order: int, tmp_path: Path) -> None:
    model = NGram.fit(TEXTS, order=order, vocab_size=6)
    save_ngram(model, tmp_path)
    back = load_ngram(tmp_path)
    assert (back.order, back.vocab_size) == (order, 6)
    assert back.discounts == model.discounts
    for ids in ([0, 1, 2, 5, 3, 1], [5, 5], *TEXTS):
        np.testing.assert_array_equal(back.logprob(ids), model.logprob(ids))
    np.testing.assert_array_equal(back.distribution([1, 2]), model.distribution([1, 2]))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no n-gram model here"):
        load_ngram(tmp_path)


def test_another_kind_of_model(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="not an n-gram model but of the type bert"):
        load_ngram(tmp_path)


@pytest.mark.parametrize("cut", [0, 5, 200])
def test_weights_cut_short(folder: Path, cut: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:cut])
    with pytest.raises(CheckpointError, match="damaged"):
        load_ngram(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("order", 3),
        ("vocab_size", 5),
        ("order", None),
        ("order", float("inf")),
        ("discounts", [[1, 2]]),
        ("discounts", 7),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        load_ngram(folder)


def test_keys_beyond_the_level_below(folder: Path) -> None:
    tables = load_file(folder / WEIGHTS)
    tables["levels.3.keys"][-1] = 10**9
    save_file(tables, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"levels\.3\.keys: beyond"):
        load_ngram(folder)


@pytest.mark.parametrize("name", ["unigrams", "levels.2.probability", "levels.3.backoff"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tables_that_are_not_finite(folder: Path, name: str, value: float) -> None:
    tables = load_file(folder / WEIGHTS)
    tables[name][0] = value
    save_file(tables, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{name}: not finite"):
        load_ngram(folder)
