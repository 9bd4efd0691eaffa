"""What each signal asks of a training."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from pretune.training.stop import StopRequest

HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def stop(notes: list[str]) -> Iterator[StopRequest]:
    with StopRequest(notes.append) as stop:
        yield stop


@pytest.mark.parametrize("number", [HUP, INT, TERM])
def test_the_first_asks_for_a_stop(
    stop: StopRequest, notes: list[str], number: signal.Signals
) -> None:
    assert not stop()
    signal.raise_signal(number)
    assert stop()
    assert stop.signal == number
    assert len(notes) == 1


@pytest.mark.parametrize("numbers", [(HUP, HUP), (HUP, HUP, TERM), (TERM, HUP), (HUP, INT, HUP)])
def test_a_terminal_that_closes_does_not_insist(
    stop: StopRequest, notes: list[str], numbers: tuple[signal.Signals, ...]
) -> None:
    """The system and the shell each send SIGHUP, and the end of a session SIGTERM beside it."""
    for number in numbers:
        signal.raise_signal(number)
    assert stop.signal == numbers[0]
    assert len(notes) == 1


@pytest.mark.parametrize("numbers", [(INT, INT), (TERM, INT), (HUP, TERM, TERM)])
def test_a_person_may(stop: StopRequest, numbers: tuple[signal.Signals, ...]) -> None:
    *before, last = numbers
    for number in before:
        signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt) as insisted:
        signal.raise_signal(last)
    assert insisted.value.args == (last,)  # the command line exits with its number


def test_nohup_stays_in_force(notes: list[str]) -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with StopRequest(notes.append) as stop:
            signal.raise_signal(HUP)
            assert not stop()
    finally:
        signal.signal(HUP, before)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (HUP, INT, TERM)]
    with StopRequest(print):
        assert [signal.getsignal(number) for number in (HUP, INT, TERM)] != before
    assert [signal.getsignal(number) for number in (HUP, INT, TERM)] == before
