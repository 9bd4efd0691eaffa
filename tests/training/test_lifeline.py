"""Processes of a run live or end together, and one of them says why; here they are threads."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.errors import PretuneError, RunError
from pretune.training import lifeline
from pretune.training.lifeline import Lifeline
from pretune.training.stop import Interrupted

SIZE = 3
PATIENCE = 10.0


class Group:
    """Three processes: what each does, how it was ended, and what came out of its context."""

    def __init__(self) -> None:
        self.ends: dict[int, int] = {}
        self.errors: dict[int, BaseException] = {}
        self.lifelines: dict[int, Lifeline] = {}
        self._ended = [threading.Event() for _ in range(SIZE)]
        self._slots: list[Any] = [None] * SIZE
        self._barrier = threading.Barrier(SIZE)

    def gather(self, rank: int) -> Callable[[Any], list[Any]]:
        def gather(mine: Any) -> list[Any]:
            self._slots[rank] = mine
            self._barrier.wait(PATIENCE)
            everybody = list(self._slots)
            self._barrier.wait(PATIENCE)
            return everybody

        return gather

    def wait(self, rank: int) -> None:
        """What a process does that waits for others: it ends only from outside."""
        assert self._ended[rank].wait(PATIENCE), f"process {rank} was never ended"

    def vanish(self, rank: int) -> None:
        """The system closes the connections of a process that is killed."""
        own = self.lifelines[rank]
        own._over.set()
        for peer in own._peers.values():
            peer.shutdown(socket.SHUT_RDWR)
        own._peers.clear()

    def run(self, *bodies: Callable[[int], None]) -> None:
        def process(rank: int) -> None:
            def end(code: int) -> None:
                self.ends[rank] = code
                self._ended[rank].set()

            try:
                with Lifeline(rank, SIZE, rank, self.gather(rank), end) as own:
                    self.lifelines[rank] = own
                    bodies[rank](rank)
            except BaseException as error:
                self.errors[rank] = error

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(SIZE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    monkeypatch.setattr(lifeline, "GRACE", 0.5)
    monkeypatch.setattr(lifeline.platform, "node", lambda: "host")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return Group()


def works(rank: int) -> None:
    pass


def raises(error: BaseException) -> Callable[[int], None]:
    def body(rank: int) -> None:
        raise error

    return body


def test_nobody_is_ended_where_all_are_done(
    group: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    group.run(works, works, raises(Interrupted(Path("run"), 3, 15)))
    assert group.ends == {}
    assert [*group.errors] == [2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("dead", "left"), [(2, {0, 1}), (0, {1, 2})])
def test_the_others_end_when_one_has_died_and_one_of_them_says_so(
    dead: int, left: set[int], group: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the first process is the dead one, over which all others are connected."""
    bodies = [group.vanish if rank == dead else group.wait for rank in range(SIZE)]
    group.run(*bodies)
    assert group.ends == dict.fromkeys(left, 1)
    assert group.errors == {}
    assert capsys.readouterr().err == (
        f"error: process {dead} of 3 (host) died, so the others end too\n"
        "  Was it killed, or its memory full? --resume auto goes on from the last checkpoint.\n"
    )


def test_an_exchange_that_broke_waits_for_the_news(
    group: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    """The own error of gloo comes at the same time; it is not what people see."""

    def exchanges(rank: int) -> None:
        raise RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:4242")

    group.run(group.wait, exchanges, group.vanish)
    assert group.ends == {0: 1, 1: 1}
    assert "process 2 of 3 (host) died" in capsys.readouterr().err


def test_or_becomes_a_sentence_where_there_is_none(group: Group) -> None:
    reason = "Connection closed by peer [127.0.0.1]:4242"
    group.run(group.wait, raises(RuntimeError(reason)), group.wait)
    assert isinstance(group.errors[1], RunError)
    assert f"the processes of this run lost each other ({reason})" in str(group.errors[1])


def test_what_one_cannot_do_the_first_says(
    group: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    group.run(group.wait, raises(RunError("no room", "Make some.")), group.wait)
    assert group.ends == {0: 2, 2: 2}
    assert isinstance(group.errors[1], PretuneError)
    assert group.errors[1].told
    shown = capsys.readouterr().err
    assert shown == "error: process 1 of 3 (host): no room\n  Make some.\n"


def test_what_none_can_do_is_said_once(group: Group, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line of the first process, as where it is alone."""

    def fails(rank: int) -> None:
        raise RunError("no such file")

    def last(rank: int) -> None:
        for other in (1, 2):
            while other not in group.lifelines:
                time.sleep(0.001)
            assert group.lifelines[other]._leaving.wait(PATIENCE)
        fails(rank)

    group.run(last, fails, fails)
    assert group.ends == {}
    assert [group.errors[rank].told for rank in range(SIZE)] == [False, True, True]
    assert capsys.readouterr().err == ""


def test_a_mistake_of_ours_shows_its_traceback_and_ends_the_others(
    group: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    group.run(group.wait, group.wait, raises(KeyError("x")))
    assert group.ends == {0: 1, 1: 1}
    assert isinstance(group.errors[2], KeyError)
    shown = "error: process 2 of 3 (host) failed with the error above, so the others end too\n"
    assert capsys.readouterr().err == shown


def test_the_launcher_is_told(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the file that torchrun shows of the first process that failed."""
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    group.run(group.wait, group.wait, group.vanish)
    told = json.loads(path.read_text(encoding="utf-8"))["message"]
    assert told["message"].startswith("process 2 of 3 (host) died")
    assert told["extraInfo"]["py_callstack"] == told["message"]
    assert int(told["extraInfo"]["timestamp"]) > 0


def test_a_stranger_is_sent_away(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds the port has to know the word."""
    connect = Lifeline._connect

    def after_strangers(self: Lifeline, host: str, port: int, token: str) -> None:
        for hello in (b'{"rank": 1, "token": "?"}\n', b"GET / HTTP/1.1\r\n\n", b""):
            with socket.create_connection((host, port)) as stranger:
                stranger.sendall(hello)
        connect(self, host, port, token)

    monkeypatch.setattr(Lifeline, "_connect", after_strangers)
    group.run(group.wait, group.wait, group.vanish)
    assert group.ends == {0: 1, 1: 1}


def test_where_the_first_process_cannot_be_reached_nobody_watches(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on all the same."""

    def refused(self: Lifeline, *place: Any) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(lifeline, "CONNECTING", 0.1)
    monkeypatch.setattr(Lifeline, "_connect", refused)
    group.run(works, works, group.vanish)
    assert group.ends == group.errors == {}
