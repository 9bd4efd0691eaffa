"""`pretune serve`: what its options become. The process itself: tests/serving/test_process.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app, defined
from pretune.cli.serve import named_models
from pretune.serving.options import ServeOptions

#: Limits with nothing but a number.
LIMITS = (
    "max_connections", "max_bodies", "max_depth", "max_values", "max_inputs", "max_chars",
    "max_request_tokens", "max_new_tokens", "max_samples", "max_choices", "max_stops",
    "max_stop_chars", "max_logprobs", "max_top_k",
)  # fmt: skip


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
        "header_seconds": 1.5,
        "body_seconds": 3.5,
        "write_seconds": 4.5,
        **{name: 11 + number for number, name in enumerate(LIMITS)},
    }
    switches = ("watch", "access_log", "insecure", "allow_pickle")
    pairs = [part for name, value in given.items() for part in (option(name), value)]
    done = pretune("a", *pairs, *map(option, switches), "--cors", "http://x", "--cors", "http://y")
    (options,) = served
    cors = ("http://x", "http://y")
    wanted = {**given, **dict.fromkeys(switches, True), "cors": cors, "models": (("a", "a"),)}
    assert {name: getattr(options, name) for name in wanted} == wanted
    assert {item.name for item in fields(ServeOptions)} == {*wanted}
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


def test_the_help_has_every_limit_with_its_default(served: list[ServeOptions]) -> None:
    command = defined("serve")
    defaults = ServeOptions((("m", "m"),))
    shown = {own.name: own for own in command.params if own.opts[0].startswith("--")}
    panels = {own.rich_help_panel for own in shown.values()}
    assert {"Who may ask", "Limits of the server", "Limits of a request"} <= panels
    for item in fields(ServeOptions):
        if item.name.startswith("max_") or item.name.endswith("_seconds"):
            option_ = shown[item.name]
            assert option_.default == getattr(defaults, item.name)
            assert option_.show_default
            assert option_.help
    done = pretune("m", "--max-inputs", 0)
    assert done.exit_code == 2
    assert "--max-inputs" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"), [(("--replicas", "2"), "--replicas"), (("--ray", "a=1"), "--ray")]
)
def test_what_is_about_a_cluster_needs_one(
    arguments: tuple[str, ...], said: str, served: list[ServeOptions]
) -> None:
    done = pretune("m", *arguments)
    assert done.exit_code == 2
    assert f"{said} is about a Ray cluster" in done.stderr
    assert "--engine ray" in done.stderr
