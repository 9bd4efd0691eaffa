"""Stopping on Ctrl-C, SIGTERM and SIGHUP: finish the update, save and exit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

from pretune.host import HANG_UP


class Stopped(Exception):  # noqa: N818 - not an error
    """The training loop ended because somebody asked it to; the last model is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} updates")
        self.step = step


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was stopped from outside; its last model is saved."""

    def __init__(self, folder: Path, steps: int, signal: int) -> None:
        super().__init__(f"stopped after {steps} updates; the last checkpoint is {folder / 'last'}")
        self.folder, self.steps, self.signal = folder, steps, signal


class StopRequest:
    """A flag that SIGINT, SIGTERM or SIGHUP sets while the context is entered.

    A second SIGINT or SIGTERM raises KeyboardInterrupt with its number. SIGHUP, of a terminal that
    was closed, insists on nothing: it comes from the system and from the shell, hence often twice
    or beside SIGTERM. Where it is ignored, as under nohup, it stays so. Outside the main thread,
    where Python allows no signal handlers, the flag is never set.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._asked = self._insisting = False
        #: The first signal that was received.
        self.signal = signal.SIGTERM
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal was received."""
        return self._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if HANG_UP is not None and signal.getsignal(HANG_UP) is not signal.SIG_IGN:
                numbers.append(signal.Signals(HANG_UP))
            for number in numbers:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number != HANG_UP:
            if self._insisting:
                raise KeyboardInterrupt(number)
            self._insisting = True
        if self._asked:
            return
        self._asked = True
        self.signal = signal.Signals(number)
        # Wherever the signal found us, perhaps in the middle of writing to this very terminal.
        with suppress(OSError, RuntimeError):
            self._say("stopping after this update; once more to exit at once without saving")
