"""`pretune prepare` as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretune.corpus.store import Corpus


def pretune(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pretune", *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "books").mkdir()
    texts = [f"the good film {i}.\nit is not bad!" for i in range(30)]
    (tmp_path / "books" / "a.txt").write_text("\n\n".join([*texts, texts[0]]))
    return tmp_path


def test_from_texts_to_shards(place: Path, tiny_vocab_folder: Path) -> None:
    command = ["prepare", "books", "--tokenizer", tiny_vocab_folder, "-o", "c", "--workers", "2"]
    done = pretune(*command, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "dropped: duplicate" in done.stdout
    assert f"wrote {place / 'c'}" in done.stdout
    assert len(Corpus.open(place / "c", verify=True)) == 30
    done = pretune(*command, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["found"] is True
    assert found["train"]["totals"]["sentences"] == 60
    assert {path.name for path in place.iterdir()} == {"books", "c"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("prepare", "book"), "Did you mean 'books'?"),
        (("prepare", "books", "--encoding", "utf8x"), "no encoding is called 'utf8x'"),
        (("prepare", "books", "--validation", "1"), "from 0 to under 1"),
        (("prepare", "books", "--min-chars", "500"), "no document is left of 31"),
        (("prepare", "books", "--tokenizer", "nowhere"), "no such folder"),
    ],
)
def test_mistakes_are_sentences(
    place: Path, tiny_vocab_folder: Path, changed: tuple[str, ...], said: str
) -> None:
    given = () if "--tokenizer" in changed else ("--tokenizer", tiny_vocab_folder)
    done = pretune(*changed, *given, "--output", "c", "--workers", "1", cwd=place)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [path.name for path in place.iterdir()] == ["books"]
