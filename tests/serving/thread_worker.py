"""Workers in threads: a service with all of its parts but processes, which take long to start."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from pretune.serving import pool, worker
from pretune.serving.worker import Link

_numbers = itertools.count(10**7)


class ThreadWorker:
    """Stands in for `multiprocessing.Process`."""

    def __init__(self, target: Any, args: tuple[Any, ...], name: str, daemon: bool) -> None:
        self._socket: socket.socket = args[0].dup()
        self._rest = args[1:]
        self._thread = threading.Thread(target=self._run, name=name, daemon=daemon)
        self.pid = next(_numbers)  # of no process
        self.exitcode: int | None = None

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        link = Link(self._socket)
        with suppress(OSError):  # it was killed
            worker._answer_all(link, *self._rest)
        link.close()
        self.exitcode = 0

    def kill(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)


@contextmanager
def thread_workers() -> Iterator[None]:
    """Let services that start meanwhile have workers that are threads."""
    context = SimpleNamespace(Process=ThreadWorker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "multiprocessing", SimpleNamespace(get_context=lambda kind: context))
        yield
