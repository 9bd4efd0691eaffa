"""What reaches a terminal is text; and streams outlive their readers."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from pretune.text.console import PlainConsole
from pretune.text.terminal import (
    LastingStream,
    OutputLost,
    for_terminal,
    hanging,
    in_line,
    json_text,
    lasting_streams,
    names_in_line,
)

#: Steers a terminal: escape, bell, backspace, a C1 control, marks of direction, half a pair.
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: Text that is likely to do that.
NASTY = st.text(
    alphabet=st.sampled_from("ab\n\t\r\x1b[2J\x08\x7f\x9b\u202e\u2067\ud800好\u200d"), max_size=30
)


@given(NASTY)
def test_nothing_steers_a_terminal(text: str) -> None:
    assert not STEERS.search(for_terminal(text))
    assert not STEERS.search(hanging(text))
    assert not STEERS.search(in_line(text))
    assert "\n" not in in_line(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb\x07\r\x9b\ud800", "a\ufffd[2Jb\ufffd\ufffd\ufffd\ufffd"),
        ("a\n\tb 好 👩‍💻", "a\n\tb 好 👩‍💻"),
        ("a\r\nb", "a\nb"),
        ("abc\u202etxt.exe", "abc\ufffdtxt.exe"),
        ("שלום\u200f!", "שלום\u200f!"),
    ],
)
def test_a_text_keeps_its_lines(text: str, shown: str) -> None:
    assert for_terminal(text) == shown


def test_a_name_is_on_one_line_and_shows_what_it_holds() -> None:
    assert in_line("a\nb\t\x1b[2J\u202e\r.csv") == r"a\nb\t\x1b[2J\u202e\r.csv"
    # Two labels that look the same.
    assert in_line("spam\u200f \u200e\u061c") == r"spam\u200f \u200e\u061c"
    assert in_line("电影 👩‍💻 C:\\x") == "电影 👩‍💻 C:\\x"


def test_of_names_some_are_shown_and_of_each_not_all() -> None:
    assert names_in_line(["text", 3, "a\n\x1b[2J\u202e"]) == r"'text', '3', 'a\n\x1b[2J\u202e'"
    assert names_in_line(["secret " * 999]) == f"'{('secret ' * 9)[:59]}…'"
    assert names_in_line(map(str, range(1000)), most=2) == "'0', '1', … (1,000)"


def test_no_name_begins_a_line_of_its_own() -> None:
    assert hanging("a\nerror: b\n  hint") == "a\n  error: b\n  hint"


@given(st.dictionaries(NASTY, NASTY | st.lists(st.integers() | NASTY)))
def test_json_is_the_same_value(value: dict[str, object]) -> None:
    for indent, ascii_only in ((None, False), (2, False), (None, True)):
        text = json_text(value, indent=indent, ascii_only=ascii_only)
        assert not STEERS.search(text)
        assert json.loads(text) == value
        assert text.isascii() or not ascii_only


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], str]:
    """What a terminal with colours gets of something."""

    def make(view: object, **options: object) -> str:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        PlainConsole().print(view, **options)  # type: ignore[arg-type]
        return stream.getvalue()

    return make


def test_only_our_own_colours_reach_it(shown: Callable[..., str]) -> None:
    assert shown(Text("a\x1b[8mb", "red")) == "\x1b[31ma\ufffd[8mb\x1b[0m\n"
    assert shown("a\x1b[8mb\x08", soft_wrap=True) == "a\ufffd[8mb\ufffd\n"
    table = Table("x\x1b]0;")
    table.add_row("[red]\u202e")
    made = shown(table)
    assert "[red]\ufffd" in made
    assert set(re.findall("\x1b..", made)) <= {"\x1b[1", "\x1b[0"}


def closed_pipe() -> io.TextIOWrapper:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def full_disk() -> io.TextIOWrapper:
    return open("/dev/full", "w", encoding="utf-8")


def not_open() -> io.TextIOWrapper:
    """A descriptor to which nothing can be written, as after `>&-`."""
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")


@pytest.mark.parametrize("make", [closed_pipe, full_disk, not_open])
def test_notes_that_cannot_be_written_are_lost(make: Callable[[], io.TextIOWrapper]) -> None:
    file = make()
    stream = LastingStream(file)
    for _ in range(3):
        assert stream.write("a note\n" * 2000) == 14_000
        stream.flush()
    stream.finish()
    file.flush()  # as Python does at its end
    file.close()


def test_notes_go_on_when_a_full_disk_has_room(tmp_path: Path) -> None:
    file = full_disk()
    stream = LastingStream(file)
    stream.write("lost\n")
    stream.flush()
    with (tmp_path / "log").open("w") as log:
        os.dup2(log.fileno(), file.fileno())
    stream.write("seen\n")
    stream.flush()
    file.close()
    assert (tmp_path / "log").read_text().endswith("seen\n")


@pytest.mark.parametrize(
    ("make", "unread", "left"),
    [(closed_pipe, True, True), (full_disk, False, False), (not_open, True, False)],
)
def test_results_that_cannot_be_written_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], io.TextIOWrapper],
    unread: bool,
    left: bool,
) -> None:
    file = make()
    monkeypatch.setattr(sys, "stdout", file)

    def work() -> None:
        with lasting_streams():
            print("a result")
            raise SystemExit

    with pytest.raises(OutputLost, match="standard output: cannot be written") as lost:
        work()
    assert (lost.value.unread, lost.value.closed_pipe) == (unread, left)
    assert sys.stdout is file
    file.close()


def test_an_encoding_that_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, "ascii"))
    with lasting_streams():
        print("好 👩")
    assert held.getvalue() == rb"\u597d \U0001f469" + b"\n"


def test_streams_that_were_closed_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    def work() -> None:
        with lasting_streams():
            assert sys.stdin.read() == ""
            print("a note", file=sys.stderr)
            print("a result", flush=True)

    with pytest.raises(OutputLost, match="Bad file descriptor"):
        work()
