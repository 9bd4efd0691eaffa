"""`pretune --plugin FILE.py`: a file of a person's own, on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app, plugins_first
from pretune.plugins import KINDS

MINE = """
import pretune
import beside

@pretune.register("metric")
def exact(answers, truths):
    return sum(a == t for a, t in zip(answers, truths)) / len(truths) + beside.NOTHING

@pretune.register("loss")
def hinge(outputs, targets):
    import torch
    return torch.nn.functional.multi_margin_loss(outputs, targets, reduction="none")

@pretune.register("callback")
class Count:
    def on_step(self, moment):
        print("counted", moment.step)
"""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("mine_30", "beside", "broken_30"):
        sys.modules.pop(name, None)
    for registry in KINDS.values():
        for own in [*registry.own]:
            registry.own.discard(own)
            registry._loaded.pop(own)


def test_a_file_of_ones_own(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "mine_30.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "beside.py").write_text("NOTHING = 0\n", encoding="utf-8")
    rows = [f"{'the ' * (i % 3)}{w} film\t{w}" for i in range(8) for w in ("good", "bad")]
    data = tmp_path / "films.tsv"
    data.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    words = ["train", data, f"model.from={tiny_folder}", f"output={tmp_path / 'run'}"]
    words += ["task.max_length=16", "train.max_steps=2", "task.metrics=[exact]", "-q"]
    words += ["task.criterion=hinge", "train.callbacks=[Count]", "train.best=exact"]
    arguments = [*map(str, words)]
    # Without the file its names are unknown, and nothing is written.
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "no callback is called 'Count'" in done.stderr
    assert "pretune --plugin FILE.py COMMAND" in done.stderr
    assert not (tmp_path / "run").exists()
    # Wherever the option stands.
    done = CliRunner().invoke(app, [*arguments, "--plugin", str(tmp_path / "mine_30.py")])
    assert done.exit_code == 0, done.output
    assert "counted 1\ncounted 2\n" in done.stdout
    assert "exact" in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("broken_30.py", "x = 1\nraise ValueError('no')\n", "broken_30.py, line 2)"),
        ("broken_30.txt", "", "is no Python file"),
        ("json.py", "", "a module is called 'json' already"),
        ("broken_30.py", None, "no such file"),
    ],
)
def test_one_that_cannot_be_run(name: str, text: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["--plugin", str(path), "recipes"])
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_plugins_come_before_the_command() -> None:
    assert plugins_first(["train", "a", "--plugin", "b.py", "-q"]) == [
        "--plugin", "b.py", "train", "a", "-q"
    ]  # fmt: skip
    assert plugins_first(["train", "--plugin=b.py"]) == ["--plugin=b.py", "train"]
    assert plugins_first(["predict", "--", "--plugin", "x"]) == ["predict", "--", "--plugin", "x"]
