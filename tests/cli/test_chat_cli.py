"""`pretune chat` as a person uses it: on a terminal, and through a pipe."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pretune.cli.chat import _answer, append_conversation
from pretune.errors import PretuneError
from pretune.text.console import PlainConsole
from tests.cli.test_cli import pretune, refused
from tests.tasks.chats import DIALOGUES, ENDLESS, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("chat"), [*DIALOGUES, ENDLESS])


def test_a_conversation_on_a_terminal(run: Path, tmp_path: Path) -> None:
    arguments = ["-m", "pretune", "chat", str(run), "--temperature", "0", "--device", "cpu"]
    talk = pexpect.spawn(
        sys.executable,
        arguments,
        cwd=str(tmp_path),
        encoding="utf-8",
        timeout=300,
        dimensions=(24, 120),
        env={**os.environ, "PYTHONUTF8": "1", "TERM": "dumb", "LC_ALL": "C.UTF-8"},
    )

    def ready() -> str:
        talk.expect("\r\n> ")
        return str(talk.before)

    talk.expect("/help shows the commands")
    ready()
    talk.sendline("中国电影好看不")
    assert ready().split() == ["中国电影好看不", "好看"]
    talk.sendline("/reset")
    assert "(forgotten)" in ready()

    # The reply to the third turn is another one than to the same words at the beginning.
    talk.sendline("the film good?")
    assert ready().split("\r\n")[1] == "good"
    talk.sendline("/save talk.jsonl")
    assert "saved in talk.jsonl" in ready()
    talk.sendline("/reset")
    ready()

    talk.sendline("/set max_new_tokens=1000000")
    ready()
    talk.sendline("go!")
    talk.expect("看看看看看看看看")  # as it is written: this reply has no end
    talk.sendintr()
    talk.expect(r"\(stopped\)")
    ready()
    talk.sendintr()  # where nothing is being written
    talk.expect("Ctrl-D or /quit leaves")
    talk.sendline("/set max_new_tokens=8")
    ready()

    talk.sendline("bad " * 200)
    talk.expect("only the end of your message fits the model's window: 1[0-9][0-9] tokens")
    ready()
    talk.sendline("/rest")
    assert "Did you mean '/reset'?" in ready()
    talk.sendline("/set temperature=-1")
    assert "temperature must be a number from 0" in ready()
    talk.sendline("/settings")
    assert "max_new_tokens=8" in ready()
    talk.sendline("/save talk.txt")
    assert "JSON lines" in ready()
    talk.sendeof()
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 0
    (line,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"turns": ["the film good?", "good"]}


def test_lines_of_a_pipe_are_messages(run: Path, tmp_path: Path) -> None:
    million = "看" * 999_999 + "!"
    text = (
        f"中国电影好看不\n/reset\nthe film good?\n\n/reset\n{million}\n/save a/b.jsonl\n/quit\nno\n"
    )
    done = pretune("chat", run, "--temperature", "0", cwd=tmp_path, text=text, PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    replies = done.stdout.splitlines()
    assert replies[:2] == ["好看", "good"]
    assert len(replies) == 3
    assert "only the end of your message fits" in done.stderr
    assert "a/b.jsonl: cannot be written" in done.stderr


def test_a_conversation_is_added_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text('{"turns": ["a", "b"]}', encoding="utf-8")
    for said in ("c", "好"):
        append_conversation({"turns": [said, "d"]}, path)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["turns"] for line in lines[:-1]] == [
        ["a", "b"],
        ["c", "d"],
        ["好", "d"],
    ]
    assert lines[-1] == ""


@pytest.mark.parametrize("name", ["a\0b.jsonl", "a\ud800b.jsonl"])
def test_what_is_no_name_of_a_file_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(PretuneError, match="is not a valid file name"):
        append_conversation({"turns": ["a", "b"]}, tmp_path / name)


def test_a_message_can_be_stopped_while_it_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    class Busy:
        def fit(self, message: str) -> None:
            raise KeyboardInterrupt

    talk: Any = Busy()
    _answer("hello", talk, PlainConsole(stderr=True))
    assert "(stopped)" in capsys.readouterr().err


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    done = pretune("chat", run, "--mmi", run, "--top-p", "3", cwd=tmp_path, text="hello\n")
    refused(done, "not trained on dialogues backwards", "pretune train chat-zh-mmi")
