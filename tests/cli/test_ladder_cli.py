"""`pretune ladder` as a person uses it: a process, its output, its exit code."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_cli import pretune, refused


def test_a_ladder(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text("the cat sat on a mat.\n" * 60, encoding="utf-8")
    common = ("ladder", "cats.txt", "--updates", "2", "--rungs", "gru,ngram", "--device", "cpu")
    done = pretune(*common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "GRU (2014)" in done.stdout
    assert done.stdout.endswith(
        "wrote ladder.json, ladder.csv and ladder.png to runs/ladder-cats\n"
    )
    assert {"ladder.json", "ladder.csv", "ladder.png", "gru", "ngram"} <= {
        path.name for path in (tmp_path / "runs/ladder-cats").iterdir()
    }
    again = pretune(*common, "--json", cwd=tmp_path)
    assert again.stderr.count("kept") == 2
    assert [rung["name"] for rung in json.loads(again.stdout)["rungs"]] == ["ngram", "gru"]


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a cat", encoding="utf-8")
    refused(pretune("ladder", "short.txt", cwd=tmp_path), "5 characters are too few")
    both = ("ladder", "short.txt", "--minutes", "1", "--updates", "1")
    refused(pretune(*both, cwd=tmp_path), "--minutes or --updates, not both")
    assert not (tmp_path / "runs").exists()
