"""Translation as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import pretune
from tests.tasks.translations import PAIRS, saved, translator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"length_ratio": 1.0, "beams": 2}
    return saved(tmp_path_factory.mktemp("cli") / "model", translator(options=options))


def test_texts_a_file_and_a_pipe_are_translated_alike(folder: Path, tmp_path: Path) -> None:
    sources = [source for source, _ in PAIRS[:3]]
    lines = "\n".join(sources) + "\n"
    (tmp_path / "in.txt").write_text(lines, encoding="utf-8")
    given = pretune("predict", folder, *sources, "--json", cwd=tmp_path)
    assert given.returncode == 0, given.stderr
    rows = [json.loads(line) for line in given.stdout.splitlines()]
    assert [row["source"] for row in rows] == sources
    assert all(set(row) == {"source", "translation", "score", "candidates"} for row in rows)
    read = pretune("predict", folder, "--file", "in.txt", "--json", cwd=tmp_path)
    assert read.stdout == given.stdout
    piped = pretune("predict", folder, "--json", cwd=tmp_path, text=lines, PYTHONUTF8="1")
    assert piped.stdout == given.stdout


def test_options_of_the_task_are_set(folder: Path, tmp_path: Path) -> None:
    asked = ("predict", folder, PAIRS[0][0], "--json", "--set")
    several = pretune(*asked, "candidates=2", cwd=tmp_path)
    assert len(json.loads(several.stdout)["candidates"]) == 2
    wrong = pretune(*asked, "beam=3", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Did you mean 'beams'?" in wrong.stderr
    for value in ("beams", "beams=x"):
        assert pretune(*asked, value, cwd=tmp_path).returncode == 2


def test_evaluation_says_how_bleu_was_measured(folder: Path, tmp_path: Path) -> None:
    for side, name in enumerate(("val.de", "val.en")):
        text = "".join(pair[side] + "\n" for pair in PAIRS)
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = pretune("evaluate", folder, "val.de,val.en", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bleu: nrefs:1|case:mixed|eff:no|tok:13a" in done.stdout
    (tmp_path / "val.en").write_text("one\n", encoding="utf-8")
    refused = pretune("evaluate", folder, "val.de,val.en", cwd=tmp_path)
    assert refused.returncode == 2
    assert "val.de has 5 lines, val.en has 1" in refused.stderr
