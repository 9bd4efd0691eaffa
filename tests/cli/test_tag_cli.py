"""A tagger on the command line, from a CoNLL file to a model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app

NAMES = ["ada", "the good", "bad"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a finished run, and the sentences it has learned from."""
    folder = tmp_path_factory.mktemp("place")
    text = ""
    for i in range(40):
        words = NAMES[i % 3].split()
        tags = ["B-PER", "I-PER"][: len(words)]
        lines = [*zip(words, tags, strict=True), ("film", "B-FILM" if i % 2 else "O"), ("un", "O")]
        text += "".join(f"{word}\t{tag}\n" for word, tag in lines) + "\n"
    (folder / "train.conll").write_text(text, encoding="utf-8")
    run(
        *("train", "ner", f"data.train={folder / 'train.conll'}", "data.validation=0.25"),
        *(f"model.from={tiny_folder}", "task.max_length=16", "task.overlap=4", "task.crf=true"),
        *("train.epochs=2", "train.learning_rate=1e-2", "train.device=cpu"),
        f"output={folder / 'run'}",
    )
    return folder


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})
    assert done.exit_code == code, done.output + str(done.exception)
    assert "Traceback" not in done.output
    return done.stdout if code == 0 else done.output


def test_figures_of_each_type(place: Path) -> None:
    shown = run("evaluate", place / "run", place / "train.conll")
    for part in ("f1", "precision", "recall", "PER", "FILM", "support"):
        assert part in shown
    found = json.loads(run("evaluate", place / "run", place / "train.conll", "--json"))
    assert found["details"]["examples"] == 40
    assert found["details"]["per_class"]["PER"]["support"] == 40
    assert found["details"]["per_class"]["FILM"]["support"] == 20


def test_texts_get_entities_with_their_places(place: Path) -> None:
    text = "the good film, un!"
    (line,) = run("predict", place / "run", text, "--json").splitlines()
    for entity in json.loads(line)["entities"]:
        assert entity["text"] == text[entity["start"] : entity["end"]]
        assert entity["type"] in ("PER", "FILM")
        assert 0 < entity["score"] <= 1
    assert run("predict", place / "run", text)


def test_a_file_gets_a_tag_a_word(place: Path) -> None:
    lines = run("predict", place / "run", "--file", place / "train.conll", "--json").splitlines()
    assert len(lines) == 40
    for line in lines:
        found = json.loads(line)
        assert len(found["tags"]) in (3, 4)


def test_a_card_with_figures_of_each_type(place: Path) -> None:
    run("push", place / "run", "me/names", "--dry-run", place / "dry")
    card = (place / "dry" / "README.md").read_text(encoding="utf-8")
    assert "token-classification" in card
    assert "PER" in card
    assert "FILM" in card


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ada\tB-PER\nfilm\n", "line 2"),
        ("ada\tB-CITY\n", "CITY"),
        ("", "empty"),
    ],
)
def test_broken_files(place: Path, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.conll"
    path.write_text(text, encoding="utf-8")
    assert said in run("evaluate", place / "run", path, code=2)
