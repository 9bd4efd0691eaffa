"""Who counts what a service does."""

from __future__ import annotations

from typing import Protocol

from pretune.serving.jobs import Counts, Served


class Observer(Protocol):
    """Is told what happens; every method returns at once."""

    def request_done(
        self, model: str, kind: str, status: int, counts: Counts, seconds: float
    ) -> None:
        """Count a request.

        Args:
            model: its name.
            kind: what was asked: `predict`, `embed`, `generate`, ...
            status: 200 for an answer, 499 where the client did not wait for it, else the refusal's.
            counts: what it took; of a refused one nothing is known.
            seconds: from its arrival to the end of its answer.
        """

    def batch_done(self, model: str, kind: str, tokens: int, requests: int, seconds: float) -> None:
        """Count a run of a model on what some requests asked for.

        Args:
            model: its name.
            kind: what they asked.
            tokens: that it read; for `generate` those that it wrote, at most one a continuation.
            requests: how many.
            seconds: how long it took.
        """

    def queue(self, length: int) -> None:
        """Note how many requests wait or are computed."""

    def version(self, served: Served) -> None:
        """Note which version of a model answers from now on."""

    def worker_died(self) -> None:
        """Count a process that died and is replaced."""


class SilentObserver:
    """An observer that counts nothing."""

    def request_done(
        self, model: str, kind: str, status: int, counts: Counts, seconds: float
    ) -> None:
        """Count nothing."""

    def batch_done(self, model: str, kind: str, tokens: int, requests: int, seconds: float) -> None:
        """Count nothing."""

    def queue(self, length: int) -> None:
        """Note nothing."""

    def version(self, served: Served) -> None:
        """Note nothing."""

    def worker_died(self) -> None:
        """Count nothing."""
