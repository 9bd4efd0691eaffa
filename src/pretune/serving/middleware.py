"""What every request passes before, and every answer after, a protocol has it."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pretune.serving.api_keys import ApiKeys
from pretune.serving.bodies import shortened
from pretune.serving.connection import HANG_UP
from pretune.serving.json_body import json_bytes
from pretune.serving.metrics import PrometheusMetrics
from pretune.serving.options import ServeOptions
from pretune.serving.plain_http import PlainCycle
from pretune.serving.refusal import Refusal, over_limit

#: Paths that need no key: the page, whose own requests need one, and what tells only "I am here".
OPEN_PATHS = frozenset(
    ("/", "/docs", "/docs.css", "/openapi.json", "/favicon.ico", "/healthz", "/readyz", "/health")
) | {"/v2/health/live", "/v2/health/ready"}
OPEN_FOLDERS = ("/page/",)
#: What is answered while the server drains; by other paths a client asks whether it may send more.
ALWAYS = frozenset(("/healthz", "/readyz", "/metrics", "/v2/health/live"))
#: Seconds that a request may take longer than the service allows, before it is given up here.
_GRACE = 2.0
#: Bytes in the head of a request: what uvicorn reads ahead of one that is not complete.
_MAX_HEAD = 1 << 14

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}
#: What each answer has, unless it says something else.
_DEFAULTS = [
    (name.lower().encode(), value.encode())
    for name, value in {**SECURITY_HEADERS, "Cache-Control": "no-store"}.items()
]
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_PORT = re.compile(r":\d+\Z", re.ASCII)
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
#: The status that nginx logs for a client that hung up.
_HUNG_UP = 499

#: Words a refusal as the protocol of a path does: status and JSON body.
Words = Callable[[str, Refusal], tuple[int, dict[str, Any]]]


@dataclass
class Traffic:
    """What is under way.

    Attributes:
        tasks: of the requests that are read or answered.
        held: bytes of their bodies.
        draining: whether new ones are refused, as the server is about to end.
        expired: whether what still runs is given up.
    """

    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    held: int = 0
    draining: bool = False
    expired: bool = False

    def give_up(self) -> None:
        """End what still runs: its clients are told, unless their answers have begun."""
        self.expired = True
        for task in self.tasks:
            task.cancel()


class _HungUp(Exception):  # noqa: N818 - nothing is wrong
    """The client is gone."""


class Envelope:
    """Give a request its id, an answer its headers, an error its words; count and log both."""

    def __init__(
        self,
        app: ASGIApp,
        words: Words,
        metrics: PrometheusMetrics,
        log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.app, self.words, self.metrics, self.log = app, words, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}
        answer = _Answer(send, request_id)
        kind = ""
        try:
            await self.app(scope, receive, answer.send)
        except _HungUp:
            answer.status, kind = _HUNG_UP, "hung_up"
        except Exception as error:
            refusal = _refusal_of(error, request_id)
            kind = refusal.kind
            if answer.status:
                # Half an answer cannot become an error: the connection ends.
                raise RuntimeError("an answer ended before its end") from None
            allow = error.headers if isinstance(error, HTTPException) else None
            await answer.refuse(*self.words(scope["path"], refusal), refusal, dict(allow or {}))
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "unknown")
            model = str(scope["state"].get("model", ""))
            self.metrics.answered(route, model, answer.status, kind, seconds)
            if self.log is not None:
                self.log(_log_line(scope, answer, kind, model, seconds))


class _Answer:
    """What is sent, with the headers that everything has."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status = self.sent = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": list(message.get("headers", []))}
            names = {name for name, _ in message["headers"]}
            message["headers"] += [pair for pair in _DEFAULTS if pair[0] not in names]
            message["headers"].append((b"x-request-id", self._request_id.encode("ascii")))
        self.sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(
        self, status: int, body: dict[str, Any], refusal: Refusal, headers: dict[str, str]
    ) -> None:
        """Send the words of a refusal."""
        content = json_bytes(body)
        headers["Content-Type"] = "application/json"
        headers["Content-Length"] = str(len(content))
        if refusal.retry_after is not None:
            headers["Retry-After"] = str(refusal.retry_after)
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if refusal.kind in ("smuggling", "http_version", "slow_body", "draining"):
            # Where the next request begins is not known, or nobody will read it.
            headers["Connection"] = "close"
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": content, "more_body": False})


def _refusal_of(error: Exception, request_id: str) -> Refusal:
    """The refusal that an error means; of our own mistakes only their place is told, to us."""
    if isinstance(error, Refusal):
        # A copy: the traceback leads back to whoever keeps this, and to the body of the request,
        # and such a circle waits for the garbage collector.
        return replace(error)
    if isinstance(error, HTTPException):
        status = error.status_code
        if status == HTTPStatus.NOT_FOUND:
            return Refusal(404, "not_found", "There is nothing at this path; see /docs.")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            return Refusal(405, "method", "This path does not take that method; see /docs.")
        return Refusal(status, "http", f"{HTTPStatus(status).phrase}.")
    # The error's own text may be one of the request.
    frames = "".join(traceback.format_tb(error.__traceback__))
    name = type(error).__name__
    print(f"error: request {request_id}: {name}\n{frames}", file=sys.stderr, flush=True)
    return Refusal(
        500, "internal", f"A mistake of the server, not of yours. Its request id is {request_id}."
    )


def _log_line(
    scope: Scope, answer: _Answer, kind: str, model: str, seconds: float
) -> dict[str, Any]:
    """A line of the access log: no text of a request, not even the query of its path."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return {
        "time": f"{stamp}.{int(now * 1000) % 1000:03d}Z",
        "id": scope["state"]["request_id"],
        "client": (scope.get("client") or ("",))[0],
        "method": scope["method"],
        "path": getattr(scope.get("route"), "path", "unknown"),
        "model": model,
        "status": answer.status,
        "kind": kind,
        "bytes_in": scope["state"].get("body_bytes", 0),
        "bytes_out": answer.sent,
        "seconds": round(seconds, 6),
    }


class Admission:
    """Let in who may ask, read what is asked within limits, and drop it when the client is gone."""

    def __init__(
        self, app: ASGIApp, options: ServeOptions, keys: ApiKeys | None, traffic: Traffic
    ) -> None:
        self.app, self.options, self.keys, self.traffic = app, options, keys, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it.

        Raises:
            Refusal: it is not let in, too large, or takes too long.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        _check_head(scope, headers)
        if self.traffic.draining and path not in ALWAYS:
            raise Refusal(503, "draining", "The server is about to end.", retry_after=5)
        self._check_host(headers)
        self._check_origin(headers)
        is_open = scope["method"] in ("GET", "HEAD") and (
            path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)
        )
        shown = headers.get("authorization", "")
        if not (is_open or self.keys is None or self.keys.admits(shown)):
            raise Refusal(401, "no_key", "This needs a key: send Authorization: Bearer YOUR_KEY.")
        task, held = asyncio.current_task(), 0
        if task is None:
            raise RuntimeError("a request is answered by a task")
        self.traffic.tasks.add(task)
        try:
            body = await self._read(scope, headers, receive)
            held = len(body)
            scope["state"]["body_bytes"] = held
            await self._answer(scope, body, receive, send)
        except asyncio.CancelledError:
            if not self.traffic.expired or task.uncancel() > 0:
                raise
            raise Refusal(
                503, "draining", "The server ended before this was done.", retry_after=5
            ) from None
        finally:
            self.traffic.held -= held
            self.traffic.tasks.discard(task)

    def _check_host(self, headers: Headers) -> None:
        """Refuse requests to names of others, where no key is needed on this machine alone.

        A page of others whose name leads here (DNS rebinding) reads what it likes as its own: a
        browser sends no `Origin` with that. What no page can be at is let in: an address, and a
        request that names no host.
        """
        host = headers.get("host", "")
        if self.keys is not None or self.options.insecure or self._is_ours(host):
            return
        allowed = {origin.rpartition("://")[2].lower() for origin in self.options.cors}
        if not {host.lower(), _name_of(host), "*"} & allowed:
            raise Refusal(
                403,
                "host",
                f"This was sent to {shortened(host)}, which is no name of this server. Whoever "
                "runs the server can allow it: pretune serve --cors ORIGIN.",
            )

    def _is_ours(self, host: str) -> bool:
        """Whether a host is this machine's name, an address, or none."""
        name = _name_of(host)
        return name in {"", *_LOOPBACK, self.options.host.lower()} or _is_address(name)

    def _check_origin(self, headers: Headers) -> None:
        """Refuse the pages of others: a browser sends what they ask without asking its person."""
        origin = headers.get("origin")
        if origin is None or {origin, "*"} & {*self.options.cors}:
            return
        if "//" not in origin or origin.rpartition("://")[2] != headers.get("host"):
            raise Refusal(
                403,
                "origin",
                "This comes from a page of another site. Whoever runs the server can allow it: "
                "pretune serve --cors ORIGIN.",
            )

    async def _read(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        """Read a body, whose bytes count in `Traffic.held` from then on."""
        limit, body = self.options.max_body, bytearray()
        plain = _plain(scope)
        declared = headers.get("content-length", "0")
        if int(declared or 0) > limit:
            raise _too_large(limit)
        try:
            # What came with the head needs no clock.
            whole = plain is not None and not plain.more_body
            async with asyncio.timeout(None if whole else self.options.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _HungUp
                    part = message.get("body", b"")
                    if len(body) + len(part) > limit:
                        raise _too_large(limit)
                    if self.traffic.held + len(part) > self.options.max_bodies:
                        full = "The requests under way fill the memory."
                        raise over_limit(503, "max_bodies", full, retry_after=1)
                    body += part
                    self.traffic.held += len(part)
                    if not message.get("more_body", False):
                        return bytes(body)
        except BaseException as error:
            self.traffic.held -= len(body)
            if not isinstance(error, TimeoutError):
                raise
        seconds = f"{self.options.body_seconds:g}"
        message_text = f"The body of a request has to arrive within {seconds} seconds."
        raise over_limit(408, "body_seconds", message_text, kind="slow_body")

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let the application answer until it is done, out of time, or nobody waits for it."""
        client = _Client(body, send)
        # A plain request says it when its client hangs up; with others somebody has to wait for it.
        plain = _plain(scope)
        watcher = None
        if plain is not None:
            plain.hung_up = client.hang_up
        else:
            watcher = asyncio.create_task(client.watch(receive))
        client.deadline = deadline = asyncio.timeout(self.options.timeout + _GRACE)
        try:
            async with deadline:
                await self.app(scope, client.receive, client.send)
        except asyncio.CancelledError:
            if not client.cancelled or client.task is None or client.task.uncancel() > 0:
                raise
            raise _HungUp from None
        except TimeoutError:
            if not deadline.expired():
                raise
            raise over_limit(
                504, "timeout", f"No answer within {self.options.timeout:g} seconds."
            ) from None
        finally:
            if watcher is not None:
                watcher.cancel()
            if plain is not None:
                plain.hung_up = None


class _Client:
    """Who waits for an answer: made in the task that answers.

    Args:
        body: of the request, which was read.
        send: passes an answer on.

    Attributes:
        cancelled: whether the task was cancelled because the client hung up.
        deadline: of an answer that has not begun.
    """

    def __init__(self, body: bytes, send: Send) -> None:
        self.task, self.cancelled = asyncio.current_task(), False
        self.deadline: asyncio.Timeout | None = None
        self._body: bytes | None = body
        self._send, self._gone, self._started = send, asyncio.Event(), False

    async def receive(self) -> Message:
        """Give the body, and then the news that the client is gone."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Pass a part of an answer on."""
        if not self._started:
            self._started = True
            if self.deadline is not None:
                # From the first byte on a stream has the time that the service allows it.
                with suppress(RuntimeError):  # it is over just now
                    self.deadline.reschedule(None)
        await self._send(message)

    async def watch(self, receive: Receive) -> None:
        """Wait until the client hangs up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.hang_up()

    def hang_up(self) -> None:
        """The client is gone."""
        self._gone.set()
        # A stream ends when it is told so; what has not begun is given up here.
        if not self._started and self.task is not None:
            self.cancelled = True
            self.task.cancel()


def _name_of(host: str) -> str:
    """The name of a host, without its port; small, as names are the same in capitals."""
    name = host.rpartition(":")[0] if _PORT.search(host) else host
    return name.strip("[]").lower()


def _is_address(name: str) -> bool:
    """Whether a host's name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _plain(scope: Scope) -> PlainCycle | None:
    """Return what answers a request, if it is a plain one."""
    plain: PlainCycle | None = scope.get("extensions", {}).get(HANG_UP)
    return plain


def _check_head(scope: Scope, headers: Headers) -> None:
    """Refuse what two readers could understand differently, and heads that are too large."""
    if scope["http_version"] not in ("1.0", "1.1"):
        raise Refusal(505, "http_version", "This server speaks HTTP/1.1.")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise Refusal(400, "smuggling", "A request has either Content-Length or Transfer-Encoding.")
    size = sum(len(name) + len(value) + 4 for name, value in headers.raw)
    if size + len(scope.get("raw_path", b"")) + len(scope["query_string"]) > _MAX_HEAD:
        message = f"The head is larger than {_MAX_HEAD:,} bytes, the limit."
        raise Refusal(431, "over_limit", message, limit="max_head")


def _too_large(limit: int) -> Refusal:
    return over_limit(413, "max_body", f"The body is larger than {limit:,} bytes, the limit.")
