"""`pretune describe` as a person uses it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\ngood film\tgood\n中国电影书\tbad\n", encoding="utf-8")
    return path


def run(*arguments: Any) -> Any:
    given = ["describe", *map(str, arguments), "-q"]
    return CliRunner().invoke(app, given, env={"COLUMNS": "140"})


def test_tables(data: Path, tiny_folder: Path) -> None:
    done = run(data, "--tokenizer", tiny_folder)
    assert done.exit_code == 0, done.output
    assert "train.tsv: 2 rows" in done.output
    assert "U+4E66" in done.output


def test_tokenizers_without_a_model(data: Path, tiny_vocab_folder: Path, tmp_path: Path) -> None:
    """A bare vocabulary, and what `pretune tokenizer` makes: no config.json in either."""
    assert not (tiny_vocab_folder / "config.json").exists()
    corpus, made = tmp_path / "corpus.txt", tmp_path / "made"
    corpus.write_text("good film 中国电影书\n" * 9, encoding="utf-8")
    done = CliRunner().invoke(app, ["tokenizer", str(corpus), "--kind", "char", "-o", str(made)])
    assert done.exit_code == 0, done.output
    for folder, longest in ((tiny_vocab_folder, 7), (made, 9)):  # with [CLS] and [SEP]; letters
        done = run(data, "--tokenizer", folder, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["files"][0]["tokens"]["all"]["max"] == longest
    refused = run(data, "--tokenizer", tmp_path)
    assert (refused.exit_code, "no tokenizer here" in refused.output) == (2, True)


def test_everything_in_files(data: Path, tmp_path: Path) -> None:
    page, folder = tmp_path / "data.html", tmp_path / "charts"
    done = run(data, "--validation", data, "--html", page, "--png", folder, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [facts["rows"] for facts in found["files"]] == [2, 2]
    assert found["leaks"][0]["rows"] == 2
    assert "中国电影书" in page.read_text(encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        f"{number}-train-{chart}.png"
        for number in (1, 2)
        for chart in ("labels", "mean_words", "words")
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--label", "lable"), "Did you mean 'label'?"),
        (("--text", "body"), "no column 'body'"),
        (("--html", "no/such/data.html"), "no such folder"),
        (("--task", "clasify"), "Did you mean 'classify'?"),
    ],
)
def test_mistakes(data: Path, more: tuple[str, ...], said: str) -> None:
    done = run(data, *more)
    assert done.exit_code == 2
    assert said in done.output


def test_charts_that_cannot_be_written(data: Path) -> None:
    refused = run(data, "--png", data / "charts")
    assert refused.exit_code == 2
    assert isinstance(refused.exception, SystemExit)
    assert f"{data / 'charts'}: cannot be written" in refused.output.replace("\n", "")


def test_what_is_to_be_pasted_is_never_broken(tmp_path: Path) -> None:
    data = tmp_path / "a.csv"
    rows = [f"some message {n},{label}" for n in range(9) for label in ("Refund", "refund ")]
    data.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    shown = CliRunner().invoke(app, ["describe", str(data)], env={"COLUMNS": "40"}).output
    (option,) = re.findall(r"'task\.labels=(\{.*?\})'", shown)
    assert set(json.loads(option)) == {"Refund", "refund"}
