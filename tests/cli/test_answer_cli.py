"""Questions on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pretune.bundle.bundle import load, save
from pretune.cli.app import app
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.question_answering.answer import Answerer, AnswerOptions
from tests.tasks.questions import CONTEXT, long_context


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> str:
    folder = tmp_path_factory.mktemp("answerer")
    torch.manual_seed(0)
    options = AnswerOptions.of_length(48, no_answer=True)
    save(load(tiny_folder, task=Answerer(options, threshold=1000.0)), folder)
    return str(folder)


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output


def test_an_answer_with_its_place(model: str) -> None:
    (line,) = run(model, "--question", "who", "--context", CONTEXT, "--json").splitlines()
    found = json.loads(line)
    assert set(found) == {
        *("question", "answer", "score", "start", "end"),
        *("no_answer", "null_odds"),
    }
    assert found["question"] == "who"
    assert found["answer"] == CONTEXT[found["start"] : found["end"]] != ""
    assert 0 < found["score"] < 1
    shown = run(model, "--question", "who", "--context", CONTEXT)
    assert f"{found['answer']}  [{found['start']}:{found['end']}]" in shown
    assert "%" in shown


def test_several_answers_and_questions(model: str) -> None:
    lines = run(
        *(model, "--question", "who", "--question", "what", "--context", CONTEXT),
        *("--top-k", "3", "--json"),
    ).splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["question"] for one in found] == ["who", "what"]
    for one in found:
        assert len(one["candidates"]) == 3
        assert one["candidates"][0]["answer"] == one["answer"]
        scores = [candidate["score"] for candidate in one["candidates"]]
        assert scores == sorted(scores, reverse=True)
    assert run(model, "--question", "who", "--context", CONTEXT, "--top-k", "3").count("%") == 3


def test_a_document_of_any_length(model: str, tmp_path: Path) -> None:
    """Longer than a text may otherwise be."""
    path = tmp_path / "book.txt"
    text = "\n".join(long_context(400) for _ in range(60))
    assert len(text) > 100_000
    path.write_text(text, encoding="gb18030")
    (line,) = run(
        *(model, "--question", "who", "--context-file", path, "--encoding", "gb18030", "--json")
    ).splitlines()
    found = json.loads(line)
    assert found["answer"] == text[found["start"] : found["end"]]


def test_files_go_in_and_answers_out(model: str, tmp_path: Path) -> None:
    rows = [{"id": i, "question": q, "context": CONTEXT} for i, q in enumerate(["who", "what"])]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = [json.loads(line) for line in run(model, "--file", path, "--json").splitlines()]
    assert [(one["id"], one["question"]) for one in found] == [(0, "who"), (1, "what")]
    assert "context" not in found[0]
    squad = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": rows}]}]}
    nested = tmp_path / "in.json"
    nested.write_text(json.dumps(squad), encoding="utf-8")
    again = [json.loads(line) for line in run(model, "--file", nested, "--json").splitlines()]
    assert [one["answer"] for one in again] == [one["answer"] for one in found]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--question", "who"], "a question needs a passage"),
        (["--context", "x"], "no question"),
        (
            ["--question", "who", "--context", "x", "--context-file", "y"],
            "either --context or --context-file",
        ),
        (["--question", "who", "--context", "x", "--file", "y"], "not several"),
        (["TEXT", "--question", "who", "--context", "x"], "not several"),
        (["--question", "who", "--context-file", "nowhere.txt"], "cannot be read"),
    ],
)
def test_what_does_not_go_together_is_said(model: str, arguments: list[str], said: str) -> None:
    assert said in run(model, *arguments, code=2)


def test_other_models_do_not_answer(tiny_folder: Path, tmp_path: Path) -> None:
    task = Classify(ClassifyOptions(max_length=16), ["bad", "good"])
    save(load(tiny_folder, task=task), tmp_path)
    said = run(tmp_path, "--question", "who", "--context", "x", code=2)
    assert "this one reads text" in said
    found = json.loads(run(tmp_path, "good film", "--json", "--top-k", "1"))
    assert list(found["scores"]) == [found["label"]]


def test_an_input_that_pandas_left_empty_is_null(model: str, tmp_path: Path) -> None:
    """NaN is no JSON."""
    (tmp_path / "a.jsonl").write_text('{"question": NaN, "context": "x"}\n', encoding="utf-8")
    shown = run(model, "--file", tmp_path / "a.jsonl", "--json")
    assert json.loads(shown.splitlines()[0], parse_constant=pytest.fail)["question"] is None
