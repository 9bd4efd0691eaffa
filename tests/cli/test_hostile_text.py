"""Texts, labels and names that would like to steer the terminal, in every command that shows them.

The terminal is a stream that says it is one, so that colours and bars are written as for a person.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pretune.bundle.bundle import load, save
from pretune.cli.app import app
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from tests.inference.conftest import Pair, bpe

__all__ = ["bpe"]  # a fixture

#: A window's title, hidden text, a cleared screen (also by C1), a bell, erased characters, the
#: beginning of the line, letters the other way round, and a line that looks like ours.
HOSTILE = "a\x1b]0;title\x07b\x1b[8mc\x1b[2Jd\x9b2J\x08\x08e\rf\u202eg\nerror: forged"
LABELS = [HOSTILE, "good"]
#: Colours, and what a bar needs.
OURS = re.compile(r"\r?\x1b\[(?:\?25[hl]|2K|\d*A|[\d;]*m)")
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with such a label, and a tensor of such a name."""
    folder = tmp_path_factory.mktemp("model")
    save(load(tiny_folder, task=Classify(ClassifyOptions(max_length=16), LABELS)), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[HOSTILE] = tensors["classifier.bias"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run: files whose names and contents are hostile."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{word} film {HOSTILE}", "label": HOSTILE} for word in ("good", "bad")]
    rows.append({"text": "good", "label": "good"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("rows.jsonl", f"{HOSTILE}.jsonl"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    (tmp_path / "other.jsonl").write_text(json.dumps({HOSTILE: "x"}) + "\n", encoding="utf-8")
    (tmp_path / "wrong.jsonl").write_text(
        json.dumps({"text": "x", "label": f"other {HOSTILE}"}) + "\n", encoding="utf-8"
    )
    recipe = f"task: classify\ndata:\n  train: rows.jsonl\n  {json.dumps(HOSTILE)}: 1\n"
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "model").mkdir()
    config = {"model_type": HOSTILE, "architectures": [HOSTILE]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a terminal gets of a command: of both streams together, or of its output alone."""

    def run(*arguments: Any, notes: bool = True) -> str:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream if notes else Terminal())
        for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "120")):
            monkeypatch.setenv(name, value)
        with contextlib.suppress(SystemExit):
            app([*map(str, arguments)], prog_name="pretune", standalone_mode=True)
        return stream.getvalue()

    return run


COMMANDS = {
    "predict-text": ("predict", "MODEL", HOSTILE),
    "predict-json": ("predict", "MODEL", HOSTILE, "--json"),
    "predict-file": ("predict", "MODEL", "--file", f"{HOSTILE}.jsonl"),
    "predict-missing": ("predict", "MODEL", "--file", f"{HOSTILE}.tsv"),
    "predict-column": ("predict", "MODEL", "--file", "other.jsonl"),
    "evaluate": ("evaluate", "MODEL", "rows.jsonl"),
    "evaluate-json": ("evaluate", "MODEL", "rows.jsonl", "--json"),
    "evaluate-label": ("evaluate", "MODEL", "wrong.jsonl"),
    "evaluate-column": ("evaluate", "MODEL", "rows.jsonl", "--column", f"text={HOSTILE}"),
    "compare": ("compare", "MODEL", "MODEL", "--data", "rows.jsonl"),
    "describe": ("describe", f"{HOSTILE}.jsonl", "rows.jsonl"),
    "describe-column": ("describe", "other.jsonl", "--text", HOSTILE),
    "embed-query": ("embed", "MODEL", f"{HOSTILE}.jsonl", "--query", HOSTILE),
    "embed-json": ("embed", "MODEL", "rows.jsonl", "--query", "x", "--json"),
    "generate": ("generate", "GPT", "--prompt", HOSTILE, "--max-new-tokens", "4"),
    "generate-whole": (
        *("generate", "GPT", "--prompt", HOSTILE, "--max-new-tokens", "4", "--no-stream"),
    ),
    "generate-json": ("generate", "GPT", "--prompt", HOSTILE, "--max-new-tokens", "4", "--json"),
    "inspect": ("inspect", "MODEL", "--tokens", HOSTILE),
    "inspect-config": ("inspect", "model"),
    "convert": ("convert", "MODEL", "out"),
    "recipes": ("recipes", HOSTILE),
    "init": ("init", HOSTILE),
    "recipe-key": ("train", "recipe.yaml"),
    "recipe-value": ("train", "rows.jsonl", f"train.epochs={HOSTILE}"),
    "recipe-name": ("train", HOSTILE),
    "plan-model": ("plan", "rows.jsonl", "model.from=model", f"data.columns.text={HOSTILE}"),
    "runs": ("runs", HOSTILE),
    "resume": ("train", "--resume", HOSTILE),
    "option": ("predict", "MODEL", f"--{HOSTILE}"),
    "option-value": ("predict", "MODEL", "x", "--top-k", HOSTILE),
    "command": (HOSTILE,),
    "more-arguments": ("runs", "a", HOSTILE),
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_no_text_steers_the_terminal(
    arguments: tuple[str, ...],
    model: Path,
    bpe: Pair,
    place: Path,
    shown: Callable[..., str],
) -> None:
    folders = {"MODEL": model, "GPT": bpe.folder}
    text = shown(*(folders.get(word, word) for word in arguments))
    assert text
    assert "\x1b[8m" not in text
    left = OURS.sub("", text)
    assert not STEERS.search(left), ascii(left)
    # What looks like an error of ours is one.
    if "--json" not in arguments and arguments[0] != "generate":
        assert not re.search("^error: forged", left, re.MULTILINE), left


def test_json_has_the_texts_themselves(model: Path, place: Path, shown: Callable[..., str]) -> None:
    answer = json.loads(shown("predict", model, HOSTILE, "--json", notes=False))
    assert answer["text"] == HOSTILE
    assert [*answer["scores"]] == LABELS
    result = json.loads(OURS.sub("", shown("evaluate", model, "rows.jsonl", "--json", notes=False)))
    assert result["details"]["labels"] == LABELS


def test_a_label_with_a_line_end_is_one_line(
    model: Path, place: Path, shown: Callable[..., str]
) -> None:
    lines = OURS.sub("", shown("predict", model, "a\n  good    99.9%", notes=False)).split("\n")
    assert lines[0] == r"a\n  good    99.9%"
    assert len(lines) == 1 + len(LABELS) + len(["", ""])  # the view and print end a line each
