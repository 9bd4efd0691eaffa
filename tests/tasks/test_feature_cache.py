from __future__ import annotations

import importlib
import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretune.data.batch import FeatureSet
from pretune.data.records import Records
from pretune.tasks import features
from pretune.tasks.builtin import TASKS
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import FeatureCache, featurize
from pretune.tasks.multiple_choice.choose import Choose, ChooseOptions
from pretune.tasks.question_answering.answer import Answerer, AnswerOptions
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from tests.plugins import install_plugin
from tests.tasks.questions import question, records

OPTIONS = AnswerOptions.of_length(64)


@pytest.fixture
def tokenizer(tiny_vocab_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_vocab_folder)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", 10**9, worth=0.0)


def rows(*texts: str) -> Records:
    return records(*(question(text, number=str(i)) for i, text in enumerate(texts)))


def alike(one: FeatureSet, other: FeatureSet) -> bool:
    return (
        one.fingerprint() == other.fingerprint()
        and np.array_equal(one.records, other.records)
        and (one.truncated, one.skipped) == (other.truncated, other.skipped)
        and list(one.rows) == list(other.rows)
    )


def files(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.iterdir()) if cache.folder.is_dir() else []


def test_what_is_found_is_what_was_made(
    cache: FeatureCache, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows("good", "bad film", "film")
    data.rows[1]["answers"]["answer_start"] = [0]
    plain = featurize(Answerer(OPTIONS), data, tokenizer)
    assert plain.skipped
    first = featurize(Answerer(OPTIONS), data, tokenizer, cache=cache)
    monkeypatch.setattr(Answerer, "features", None)  # would fail if it were asked again
    done: list[int] = []
    second = featurize(Answerer(OPTIONS), data, tokenizer, cache=cache, progress=done.append)
    assert alike(plain, first)
    assert alike(plain, second)
    assert second.rows is data.rows


def test_other_tasks_too(cache: FeatureCache, tokenizer: Tokenizer) -> None:
    data = Records([{"text": "good film", "label": "a"}, {"text": "bad", "label": "b"}], "x")
    task = Classify(ClassifyOptions(max_length=16), ["a", "b"])
    plain = featurize(task, data, tokenizer)
    featurize(task, data, tokenizer, cache=cache)
    assert alike(plain, featurize(task, data, tokenizer, cache=cache))
    other = Classify(ClassifyOptions(max_length=16), ["b", "a"])
    assert featurize(other, data, tokenizer, cache=cache).targets["label"].tolist() == [1, 0]


def test_features_of_several_sequences(
    cache: FeatureCache, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"context": "film", "choices": ["good", "bad film", "un"][:n], "label": 0} for n in (3, 2)
    ]
    data = Records(rows, "x", None, ("context", "choices", "label"))
    plain = featurize(Choose(ChooseOptions(max_length=16)), data, tokenizer)
    featurize(Choose(ChooseOptions(max_length=16)), data, tokenizer, cache=cache)
    monkeypatch.setattr(Choose, "features", None)
    found = featurize(Choose(ChooseOptions(max_length=16)), data, tokenizer, cache=cache)
    assert alike(plain, found)
    assert found.choices == plain.choices


def test_the_key_is_of_all_that_matters(
    cache: FeatureCache, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(
        data: Records | None = None,
        with_tokenizer: Tokenizer | None = None,
        how: Any = "x",
    ) -> str:
        base = rows("good", "film") if data is None else data
        return cache.key(base, with_tokenizer or tokenizer, how)

    larger = Tokenizer(tokenizer.engine.__class__.from_str(tokenizer.engine.to_str()), {})
    larger.engine.add_tokens(["newword"])
    data = rows("good", "film")
    keys = [
        key(),
        key(rows("film", "good")),
        key(rows("good")),
        key(records(*({**row, "is_impossible": True} for row in rows("good", "film").rows))),
        key(how="y"),
        key(with_tokenizer=larger),
        key(replace(data, max_chars=7)),
        key(replace(data, categories={"label": ["a"]})),
    ]
    assert len(set(keys)) == len(keys)
    monkeypatch.setattr(features, "_sources", lambda: "of other code")
    assert key() not in keys
    monkeypatch.undo()
    elsewhere = replace(data, origin="other.jsonl", lines=None)
    assert key(elsewhere) == key()


def test_the_key_is_of_the_code_of_every_task() -> None:
    files = {Path(inspect.getfile(task)) for task in TASKS.values()}
    assert files <= set(features.source_files())


def test_the_key_is_of_the_code_of_a_packages_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for code in ("class Own: pass", "class Own: pass  # changed"):
        folder = tmp_path / str(len(hashes))
        folder.mkdir()
        install_plugin(folder, monkeypatch, "pretune-own", code, {})
        hashes.append(features.source_of(importlib.import_module("pretune_own").Own))
    assert len({*hashes, features.source_of(TASKS["regress"])}) == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_what_is_damaged_is_made_anew(
    damage: str, cache: FeatureCache, tokenizer: Tokenizer
) -> None:
    data = rows("good", "film")
    plain = featurize(Answerer(OPTIONS), data, tokenizer, cache=cache)
    (path,) = files(cache)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-20] ^= 1
    path.write_bytes(
        {"cut": whole[:-9], "flip": bytes(changed), "empty": b"", "other": b"x" * 99}[damage]
    )
    assert cache.read(path.stem) is None
    assert alike(plain, featurize(Answerer(OPTIONS), data, tokenizer, cache=cache))
    assert path.read_bytes() == whole


def test_the_oldest_make_room(cache: FeatureCache, tokenizer: Tokenizer) -> None:
    datas = [rows("good"), rows("film"), rows("bad")]
    for i, data in enumerate(datas):
        before = set(files(cache))
        featurize(Answerer(OPTIONS), data, tokenizer, cache=cache)
        (new,) = set(files(cache)) - before
        os.utime(new, (1000 + i, 1000 + i))
    key = [p.stem for p in sorted(files(cache), key=lambda p: p.stat().st_mtime)]
    assert cache.read(key[0]) is not None  # now it is the newest
    size = files(cache)[0].stat().st_size
    small = replace(cache, max_bytes=3 * size + 10)
    featurize(Answerer(OPTIONS), rows("The"), tokenizer, cache=small)
    left = {path.stem for path in files(cache)}
    assert len(left) == 3
    assert key[0] in left
    assert key[1] not in left


def test_what_is_quickly_made_or_too_large_is_not_kept(
    cache: FeatureCache, tokenizer: Tokenizer
) -> None:
    for own in (replace(cache, worth=1000.0), replace(cache, max_bytes=5)):
        featurize(Answerer(OPTIONS), rows("good"), tokenizer, cache=own)
        assert files(cache) == []


def test_a_folder_that_takes_nothing_is_no_reason_to_stop(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    cache = FeatureCache(tmp_path / "file" / "features", 10**9, worth=0.0)
    assert len(featurize(Answerer(OPTIONS), rows("good"), tokenizer, cache=cache)) == 1


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRETUNE_CACHE", "off")
    assert FeatureCache.usual() is None
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PRETUNE_CACHE_GB", "0.5")
    found = FeatureCache.usual()
    assert found is not None
    assert (found.folder, found.max_bytes) == (tmp_path / "features", 500_000_000)
    monkeypatch.delenv("PRETUNE_CACHE")
    monkeypatch.setenv("PRETUNE_CACHE_GB", "many")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    found = FeatureCache.usual()
    assert found is not None
    assert (found.folder, found.max_bytes) == (tmp_path / "x/pretune/features", 10**10)
