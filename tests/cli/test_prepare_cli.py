"""`pretune prepare` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretune.corpus.store import Corpus
from tests.cli.several import several


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "books").mkdir()
    texts = [f"the good film {i}.\nit is not bad!" for i in range(30)]
    (tmp_path / "books" / "a.txt").write_text("\n\n".join([*texts, texts[0]]))
    return tmp_path


def test_from_texts_to_shards(place: Path, tiny_vocab_folder: Path) -> None:
    command = ["prepare", "books", "--tokenizer", tiny_vocab_folder, "-o", "c", "--workers", "2"]
    first, second = several(command, [*command, "--json"], cwd=place)
    assert first.returncode == 0, first.stderr
    assert "dropped: duplicate" in first.stdout
    assert f"wrote {place / 'c'}" in first.stdout
    assert len(Corpus.open(place / "c", verify=True)) == 30
    assert second.returncode == 0, second.stderr
    reply = json.loads(second.stdout)
    assert reply["found"] is True
    assert reply["train"]["totals"]["sentences"] == 60
    assert {path.name for path in place.iterdir()} == {"books", "c"}


def test_mistakes_are_sentences(place: Path, tiny_vocab_folder: Path) -> None:
    mistakes = {
        "prepare book": "Did you mean 'books'?",
        "prepare books --encoding utf8x": "no encoding is called 'utf8x'",
        "prepare books --validation 1": "from 0 to under 1",
        "prepare books --min-chars 500": "no document is left of 31",
        "prepare books --tokenizer nowhere": "no such folder",
    }
    lines = []
    for mistake in mistakes:
        given = [] if "--tokenizer" in mistake else ["--tokenizer", tiny_vocab_folder]
        lines.append([*mistake.split(), *given, "--output", "c", "--workers", "1"])
    for done, told in zip(several(*lines, cwd=place), mistakes.values(), strict=True):
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert done.stdout == ""
    assert [path.name for path in place.iterdir()] == ["books"]
