"""Ctrl-C and SIGTERM: finish the update, save, and go; a second one goes at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """While entered, the first SIGINT or SIGTERM makes calling this give True.

    Outside the main thread, where Python allows no signal handlers, it never does.

    Args:
        say: tells the person what happens.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._asked = False
        #: The one that came.
        self.signal = signal.SIGTERM
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody asked to stop."""
        return self._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self.signal = signal.Signals(number)
        # Wherever the signal found us, perhaps in the middle of writing to this very terminal.
        with suppress(OSError, RuntimeError):
            self._say("stopping after this update; once more to exit at once without saving")
