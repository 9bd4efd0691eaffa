"""`pretune serve`: what its options become. The process itself: tests/serving/test_process.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.cli.serve import named_models
from pretune.serving.options import ServeOptions


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeOptions]:
    """What would be served; at once it is said to be ready."""
    calls: list[ServeOptions] = []

    def serve(
        options: ServeOptions, *, ready: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        calls.append(options)
        say("a note")
        ready("ready: evil\x1b[2J\nname")

    monkeypatch.setattr("pretune.serving.server.serve", serve)
    return calls


def pretune(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["serve", *map(str, arguments)])


def test_the_defaults_are_those_of_the_options(served: list[ServeOptions]) -> None:
    done = pretune("minilm")
    assert served == [ServeOptions((("minilm", "minilm"),))]
    # One line, whatever a name holds.
    assert (done.stdout, done.stderr) == ("ready: evil\\x1b[2J\\nname\n", "a note\n")


def test_every_option_arrives(served: list[ServeOptions], tmp_path: Path) -> None:
    given = {
        "port": 0,
        "host": "::1",
        "device": "cpu",
        "precision": "int8",
        "workers": 2,
        "api_key_file": tmp_path / "keys",
        "max_batch_tokens": 77,
        "max_queue": 5,
        "max_body": 1000,
        "timeout": 2.5,
        "drain": 0.0,
    }
    switches = ("watch", "access_log", "insecure", "allow_pickle")
    pairs = [part for name, value in given.items() for part in (option(name), value)]
    done = pretune("a", *pairs, *map(option, switches), "--cors", "http://x", "--cors", "http://y")
    (options,) = served
    cors = ("http://x", "http://y")
    wanted = {**given, **dict.fromkeys(switches, True), "cors": cors, "models": (("a", "a"),)}
    assert {name: getattr(options, name) for name in wanted} == wanted
    untouched = {item.name for item in fields(ServeOptions)} - {*wanted}
    assert all(name.startswith("max_") or name.endswith("_seconds") for name in untouched)
    # Standard output has the log and nothing else.
    assert (done.stdout, done.stderr) == ("", "a note\nready: evil\\x1b[2J\\nname\n")


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_models_have_the_names_of_their_folders(tmp_path: Path) -> None:
    best = tmp_path / "tickets" / "best"
    best.mkdir(parents=True)
    runs = [f"{best}", f"{tmp_path}/tickets/../other/", "owner/name"]
    (tmp_path / "other").mkdir()
    models = named_models(runs, [f"mine={best}"])
    assert [name for name, _ in models] == ["tickets", "other", "owner/name", "mine"]
    assert [source for _, source in models] == [*runs, str(best)]
