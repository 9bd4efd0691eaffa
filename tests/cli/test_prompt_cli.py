"""`pretune prompt` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pretune as library
from pretune.cli.app import app
from tests.inference.conftest import Pair, bpe, llama

__all__ = ["bpe", "llama"]  # fixtures

ROWS = [("good film", 1), ("bad film", 0), ("small stories", 0), ("the best", 1), ("a", 1)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.tsv"
    text = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["prompt", *map(str, arguments)], env={"COLUMNS": "120"})


OPTIONS = ("--shots", "0,1", "--seeds", "2", "--answers", "0=bad,1=good", "--device", "cpu")


def test_a_table_and_a_file(bpe: Pair, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    template = "{sentence}\\nIt: {answer}"
    done = run(bpe.folder, data, "--train", data, *OPTIONS, "--template", template, "-q")
    assert done.exit_code == 0, done.output
    expected = library.prompt(
        bpe.folder,
        data,
        train=data,
        shots=(0, 1),
        seeds=range(2),
        answers={"0": "bad", "1": "good"},
        template="{sentence}\nIt: {answer}",
        device="cpu",
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    figures = expected.to_dict()["summary"]
    for shots, seeds in (("0", "1"), ("1", "2")):
        (line,) = [
            one for one in lines if [cell for cell in one if cell != "│"][:2] == [shots, seeds]
        ]
        assert f"{figures[shots]['accuracy']:.4f}" in line
        assert f"{figures[shots]['macro_f1']:.4f}" in line
        assert f"{figures[shots]['shares']['bad']:.1%}" in line
    assert "always 'good': 0.6000" in done.stdout
    assert "5 questions, score: likelihood" in done.stdout

    file = tmp_path / "template.txt"
    file.write_text("{sentence}\nIt: {answer}\n", encoding="utf-8")
    more = ("--template", file, "--output", output, "--json", "-q")
    done = run(bpe.folder, data, "--train", data, *OPTIONS, *more)
    assert done.exit_code == 0, done.output
    saved = json.loads(output.read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(expected.to_dict()))
    assert json.loads(done.stdout)["summary"] == saved["summary"]


def test_chat_asks_by_the_models_template(llama: Pair, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    more = ("--shots", "1", "--template", "{sentence} {answer}", "--output", output, "-q")
    done = run(llama.folder, data, "--train", data, *OPTIONS, *more, "--chat")
    assert done.exit_code == 0, done.output
    asked = {"train": data, "shots": (1,), "seeds": range(2), "device": "cpu"}
    asked |= {"template": "{sentence} {answer}", "answers": {"0": "bad", "1": "good"}}
    expected = library.prompt(llama.folder, data, chat=True, **asked).to_dict()
    saved = json.loads(output.read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(expected))
    assert saved["cells"] != library.prompt(llama.folder, data, **asked).to_dict()["cells"]


def test_how_the_data_were_read_is_said(bpe: Pair, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text(data.read_text(encoding="utf-8").replace("\t", ";"), encoding="utf-8")
    done = run(bpe.folder, table, *OPTIONS, "--shots", "0", "--seeds", 1, "-q")
    assert done.exit_code == 0, done.output
    assert "read with semicolons between columns, not commas" in " ".join(done.stderr.split())


def test_what_had_no_room_is_said(bpe: Pair, data: Path) -> None:
    done = run(bpe.folder, data, "--train", data, *OPTIONS, "--shots", "5", "-q")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "! 5 shots, seed 0: 5 of 5 prompts were too long for the model; the first" in said


@pytest.mark.parametrize("score", ["mean", "per_byte", "calibrated", "pmi", "generate"])
def test_every_score_has_a_name(bpe: Pair, data: Path, score: str) -> None:
    done = run(
        bpe.folder, data, "--train", data, *OPTIONS, "--score", score, "--random", "--limit", 2
    )
    assert done.exit_code == 0, done.output
    assert f"2 questions, score: {score}" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--label", "sentiment"), "no column 'sentiment' for the labels"),
        (("--template", "{text}: {answer}"), "template: the data has no column 'text'"),
        (("--template", "nothing.txt"), "--template nothing.txt: neither a file nor a template"),
        (("--answers", "0=bad,2=good"), "data.tsv, line 2, column 'label': unknown label '1'"),
        (("--answers", "0=bad,good"), "some have a label and some have not"),
        (("--shots", "0,x"), "--shots 0,x: expected whole numbers"),
        (("--score", "best"), "unknown score 'best'"),
        (("--train", "nothing.tsv"), "nothing.tsv: no such file"),
        (("--shots", "9"), "5 rows to draw 9 examples from"),
        (("--chat",), "chat: the model's tokenizer has no chat template"),
        (("--output", "no/such/folder.json"), "no/such/folder.json: no such folder"),
    ],
)
def test_mistakes_are_named(bpe: Pair, data: Path, options: tuple[str, ...], said: str) -> None:
    done = run(bpe.folder, data, "--answers", "0=bad,1=good", "--device", "cpu", *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bert_cannot(tiny_folder: Path, data: Path) -> None:
    done = run(tiny_folder, data)
    assert done.exit_code == 2
    assert "a bert model cannot generate text" in done.stderr
