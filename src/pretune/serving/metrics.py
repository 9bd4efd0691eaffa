"""`/metrics`: what the service does, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import override

from pretune.serving.jobs import Counts, Served
from pretune.serving.observer import SilentObserver
from pretune.version import __version__

#: Seconds: from a short text on a GPU to a long continuation on a CPU.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
#: Tokens of a packed batch.
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
#: Requests of a packed batch.
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class PrometheusMetrics(SilentObserver):
    """An observer that counts for Prometheus, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._shown: dict[str, tuple[str, ...]] = {}  # of each model, the labels of what answers
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"pretune_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"pretune_{name}", what, labels, registry=registry)

        def histogram(
            name: str, what: str, *labels: str, buckets: Sequence[float] = _SECONDS
        ) -> Histogram:
            return Histogram(f"pretune_{name}", what, labels, buckets=buckets, registry=registry)

        # Over HTTP.
        self._requests = counter(
            *("requests", "Requests over HTTP, by path and status."), "path", "model", "status"
        )
        self._errors = counter("errors", "Requests that were refused, by kind.", "kind")
        self._latency = histogram(
            *("request_seconds", "From the head of a request to the end of its answer."), "path"
        )
        # Of models.
        kinds = ("model", "kind")
        self._waits = histogram("queue_seconds", "Waiting until a model ran on a request.", *kinds)
        self._computes = histogram(
            "model_seconds", "Computing the batches that a request was a part of.", *kinds
        )
        self._batch_tokens = histogram(
            "batch_tokens", "Tokens of a packed batch.", *kinds, buckets=_TOKENS
        )
        self._batch_requests = histogram(
            "batch_requests", "Requests in a packed batch.", *kinds, buckets=_REQUESTS
        )
        self._batch_seconds = histogram("batch_seconds", "Computing a packed batch.", *kinds)
        self._read = counter("read_tokens", "Tokens that models read.", *kinds)
        self._generated = counter("generated_tokens", "Tokens that were written.", "model")
        self._queue = gauge("queue_length", "Requests that wait or are computed.")
        self._versions = gauge(
            *("model_version", "Which version of a model answers, 1 from the start."), "model"
        )
        self._which = gauge(
            *("model_info", "Which model answers: its version, update and weights.", "model"),
            *("version", "step", "digest"),
        )
        self._died = counter("workers_died", "Processes that died and were replaced.")
        gauge("info", "The version of pretune.", "version").labels(__version__).set(1)

    def answered(self, route: str, model: str, status: int, kind: str, seconds: float) -> None:
        """Count a request over HTTP."""
        self._requests.labels(route, model, str(status)).inc()
        self._latency.labels(route).observe(seconds)
        if kind:
            self._errors.labels(kind).inc()

    @override
    def request_done(
        self, model: str, kind: str, status: int, counts: Counts, seconds: float
    ) -> None:
        if status == HTTPStatus.OK:
            self._waits.labels(model, kind).observe(counts.queue)
            self._computes.labels(model, kind).observe(counts.compute)
            self._read.labels(model, kind).inc(counts.tokens)

    @override
    def batch_done(self, model: str, kind: str, tokens: int, requests: int, seconds: float) -> None:
        self._batch_tokens.labels(model, kind).observe(tokens)
        self._batch_requests.labels(model, kind).observe(requests)
        self._batch_seconds.labels(model, kind).observe(seconds)
        if kind == "generate":
            self._generated.labels(model).inc(tokens)

    @override
    def queue(self, length: int) -> None:
        self._queue.set(length)

    @override
    def version(self, served: Served) -> None:
        self._versions.labels(served.name).set(served.version)
        which = served.name, str(served.version), str(served.step or ""), served.digest or ""
        before, self._shown[served.name] = self._shown.get(served.name), which
        if before is not None:
            self._which.remove(*before)
        self._which.labels(*which).set(1)

    @override
    def worker_died(self) -> None:
        self._died.inc()

    def routes(self) -> list[Route]:
        """The path that Prometheus reads."""
        return [Route("/metrics", self._show)]

    async def _show(self, request: Request) -> Response:
        text = generate_latest(self.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
