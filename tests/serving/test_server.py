"""`pretune serve` as a process: its line, its signals, its answers, its memory."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app as commands
from pretune.errors import RunError
from pretune.serving.api_keys import ApiKeys
from pretune.serving.examples import example_for
from pretune.serving.server import check_address, ready_line
from tests.serving.live_server import some_options
from tests.serving.models import served_model

TEXTS = ["the good film", "bad 好 film?", "x", ""]
#: All addresses of the machine.
ANY = "0.0.0.0"  # noqa: S104


class TestRefusals:
    def refused(self, *arguments: Any) -> str:
        done = CliRunner().invoke(commands, ["serve", *map(str, arguments)])
        assert done.exit_code == 2, done.output
        return done.stderr

    def test_other_machines_need_a_key(self, classifier: Path) -> None:
        told = self.refused(classifier, "--host", ANY)
        assert "0.0.0.0 can be reached from other machines" in told
        assert "--api-key-file" in told
        assert "--insecure" in told

    def test_insecure_is_told(self) -> None:
        said: list[str] = []
        check_address(some_options(host=ANY, insecure=True), said.append)
        assert said == [
            "0.0.0.0 can be reached from other machines: anybody there can ask the models, as "
            "--insecure allows"
        ]
        for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
            check_address(some_options(host=host), said.append)
        assert len(said) == 1
        for host in ("192.168.0.1", "::", "", "localhost.example", "127.0.0.1.example"):
            with pytest.raises(RunError):
                check_address(some_options(host=host), said.append)

    def test_a_port_that_is_taken(self, classifier: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            told = self.refused(classifier, "--port", port)
        assert f"port {port} of 127.0.0.1 is taken" in told
        assert "--port 0" in told

    def test_an_address_of_others(self, classifier: Path, tmp_path: Path) -> None:
        keys = tmp_path / "keys.txt"
        keys.write_text("first-key\n")
        more = ("--api-key-file", keys)
        assert "no address of this machine" in self.refused(
            classifier, "--host", "192.0.2.1", *more
        )
        assert "is no address" in self.refused(classifier, "--host", "no such host", *more)
        keys.write_text("")
        assert "no key in it" in self.refused(classifier, *more, "--port", 0)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "nothing to serve"),
            (("--name", "x"), "expected NAME=RUN"),
            (("a/x", "--name", "a/x=y"), "two models are called 'a/x'"),
            (("--name", "a b=y"), "'a b' is no name for a model"),
            (("x", "--max-queue", "0"), "--max-queue"),
        ],
    )
    def test_names(self, arguments: tuple[str, ...], said: str) -> None:
        assert said in self.refused(*arguments)

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing"
        assert str(missing) in self.refused(missing, "--port", 0)

    def test_a_missing_package(self, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        told = self.refused(classifier)
        assert "serving needs uvicorn" in told
        assert "pip install 'pretune[serve]'" in told


def test_the_line_is_about_what_is_served(tmp_path: Path) -> None:
    options = some_options(host=ANY, api_key_file=tmp_path / "the keys")
    line = ready_line(options, 81, [served_model(), served_model(name="n")])
    assert line.startswith("serving 2 models: http://127.0.0.1:81/ (API: http://127.0.0.1:81/docs)")
    assert "http://[::1]:81/" in ready_line(some_options(host="::1"), 81, [served_model()])


@pytest.mark.parametrize(
    "content",
    [
        b"a-key\nother\n",
        b"\xef\xbb\xbfa-key\r\nother\r\n",
        b"\xef\xbb\xbf# whose it is\r\n\r\n  # more\n \ta-key \r\nother",
        b"\n\na-key",
    ],
)
def test_the_line_shows_the_first_key_as_the_server_reads_it(
    tmp_path: Path, content: bytes
) -> None:
    keys = tmp_path / "the keys"
    keys.write_bytes(content)
    line = ready_line(some_options(api_key_file=keys), 81, [served_model()])
    command = line.partition("; try: ")[2].replace("curl ", "printf '%s\\n' ", 1)
    told = subprocess.run(["sh", "-c", command], capture_output=True, check=True, text=True).stdout
    assert told.splitlines()[-1] == "Authorization: Bearer a-key"
    assert ApiKeys(keys, print).admits("Bearer a-key")


@pytest.mark.parametrize(
    ("task", "abilities", "inputs", "path"),
    [
        ("chat", {"predict", "generate", "chat"}, ("turns",), "/v1/chat/completions"),
        ("causal_lm", {"predict", "generate"}, ("text",), "/v1/completions"),
        (None, {"generate"}, (), "/v1/completions"),
        (None, {"embed"}, (), "/v1/embeddings"),
        ("answer", {"predict", "embed"}, ("question", "context"), "/v1/predict"),
    ],
)
def test_an_example_is_of_what_the_model_does_best(
    task: str | None, abilities: set[Any], inputs: tuple[str, ...], path: str
) -> None:
    example = example_for(served_model(task=task, abilities=frozenset(abilities), inputs=inputs))
    assert example[0] == path
