"""Translation as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pretune.cli.app import app
from tests.cli.test_cli import pretune
from tests.tasks.translations import PAIRS, saved, translator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"length_ratio": 1.0, "beams": 2}
    return saved(tmp_path_factory.mktemp("cli") / "model", translator(options=options))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_texts_a_file_and_a_pipe_are_translated_alike(folder: Path, tmp_path: Path) -> None:
    sources = [source for source, _ in PAIRS[:3]]
    lines = "\n".join(sources) + "\n"
    (tmp_path / "in.txt").write_text(lines, encoding="utf-8")
    given = run("predict", folder, *sources, "--json")
    assert given.exit_code == 0, given.stderr
    rows = [json.loads(line) for line in given.stdout.splitlines()]
    assert [row["source"] for row in rows] == sources
    assert all(set(row) == {"source", "translation", "score", "candidates"} for row in rows)
    read = run("predict", folder, "--file", tmp_path / "in.txt", "--json")
    assert read.stdout == given.stdout
    piped = pretune("predict", folder, "--json", cwd=tmp_path, text=lines, PYTHONUTF8="1")
    assert piped.stdout == given.stdout


def test_options_of_the_task_are_set(folder: Path) -> None:
    asked = ("predict", folder, PAIRS[0][0], "--json", "--set")
    several = run(*asked, "candidates=2")
    assert len(json.loads(several.stdout)["candidates"]) == 2
    wrong = run(*asked, "beam=3")
    assert wrong.exit_code == 2
    assert "Did you mean 'beams'?" in wrong.stderr
    for value in ("beams", "beams=x"):
        assert run(*asked, value).exit_code == 2


def test_a_source_that_is_cut_is_said(folder: Path) -> None:
    long = "Ein Hund läuft. " * 100
    done = run("predict", folder, PAIRS[0][0], long, "--json")
    assert len(done.stdout.splitlines()) == 2
    assert "1 of them had more than 40 tokens; the rest was cut" in done.stderr
    assert "was cut" not in run("predict", folder, PAIRS[0][0]).stderr


def test_a_line_ends_at_a_line_feed_alone(folder: Path, tmp_path: Path) -> None:
    text = "Ein Hund.\nEin Mann\u2028schläft.\x0c\x85\r\nZwei.\n"
    (tmp_path / "in.txt").write_bytes(text.encode())
    given = pretune("predict", folder, "--file", "in.txt", "--json", cwd=tmp_path)
    sources = [json.loads(line)["source"] for line in given.stdout.split("\n")[:-1]]
    assert sources == ["Ein Hund.", "Ein Mann\u2028schläft.\x0c\x85", "Zwei."]
    piped = pretune("predict", folder, "--json", cwd=tmp_path, text=text, PYTHONUTF8="1")
    assert len(piped.stdout.split("\n")) == 4


def test_evaluation_says_how_bleu_was_measured(folder: Path, tmp_path: Path) -> None:
    for side, name in enumerate(("val.de", "val.en")):
        text = "".join(pair[side] + "\n" for pair in PAIRS)
        (tmp_path / name).write_text(text, encoding="utf-8")
    data = f"{tmp_path / 'val.de'},{tmp_path / 'val.en'}"
    done = run("evaluate", folder, data)
    assert done.exit_code == 0, done.stderr
    assert "bleu: nrefs:1|case:mixed|eff:no|tok:13a" in done.stdout
    (tmp_path / "val.en").write_text("one\n", encoding="utf-8")
    refused = run("evaluate", folder, data)
    assert refused.exit_code == 2
    assert "val.en has 1" in refused.stderr
