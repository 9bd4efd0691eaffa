"""The same documents as a prepared corpus and as records."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pretune.corpus.encode import Cleaning
from pretune.corpus.pipeline import Settings, prepare
from pretune.corpus.store import StoredDocuments
from pretune.data.batch import Features
from pretune.data.records import Records

#: Nothing is done to the texts.
RAW = Settings(
    cleaning=Cleaning(nfc=False, control=False, spaces=False),
    keep_duplicates=True,
)


def stored(
    texts: list[str], tokenizer: Path, folder: Path, shard_tokens: int = 60
) -> StoredDocuments:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "t.jsonl").write_text("\n".join(rows), encoding="utf-8")
    settings = replace(RAW, shard_tokens=shard_tokens)
    prepare([folder / "t.jsonl"], tokenizer, folder / "corpus", settings, workers=1)
    return StoredDocuments.open(folder / "corpus")


def raw(texts: list[str]) -> Records:
    return Records([{"text": text} for text in texts], "x", columns=("text",))


def assert_same(actual: Features, expected: Features, but: tuple[str, ...] = ()) -> None:
    assert len(actual) == len(expected)
    assert actual.lengths.tolist() == expected.lengths.tolist()
    for sort in (True, False):
        which = np.arange(len(expected))[::-1]
        one, two = (features.batch(which, sort=sort) for features in (actual, expected))
        assert one.layout.lengths == two.layout.lengths
        for name in ("tokens", "positions", "index"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
        assert (one.segments is None) == (two.segments is None)
        if one.segments is not None and two.segments is not None:
            assert torch.equal(one.segments, two.segments)
        assert set(one.targets) == set(two.targets)
        for name in set(one.targets) - set(but):
            assert torch.equal(one.targets[name], two.targets[name]), name
    records = range(len(expected))
    assert [actual.record(i) for i in records] == [expected.record(i) for i in records]
