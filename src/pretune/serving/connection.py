"""Connections that cannot be held open by saying, or reading, next to nothing.

uvicorn closes a connection that is silent after an answer. What it leaves open is one that never
asks, that sends the head of a request byte by byte, or that does not read what it asked for.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import h11
from typing_extensions import override
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

from pretune.serving.options import ServeOptions
from pretune.serving.plain_http import Headers, PlainCycle, read_head
from pretune.serving.refusal import option_of

#: The extension of ASGI by which a request says whom to tell when its client hangs up.
HANG_UP = "pretune.hang_up"
#: Seconds for the last bytes of an answer after which nothing more comes.
_LINGER = 10.0


class BoundedHttp(H11Protocol):
    """HTTP/1.1 with a time for the head of a request and for reading an answer.

    Attributes:
        options: with the limits; a class for each server, see `bounded_http`.
    """

    options: ServeOptions

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._has_asked = False
        # Of a plain request: bytes of its body that are still to come, and what came after them.
        self._missing, self._rest = 0, b""
        if len(self.connections) > self.options.max_connections:
            limit = self.options.max_connections
            message = f"There are {limit:,} connections already, which is the limit."
            message += " " + option_of("max_connections")
            self._refuse(503, "Service Unavailable", "over_limit", message, "Retry-After: 5\r\n")
        else:
            self._await_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if isinstance(self.cycle, PlainCycle) and not self.cycle.response_complete:
            self.cycle.tell_hung_up()

    @override
    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._missing or (self._busy() and isinstance(self.cycle, PlainCycle)):
            self._take(data)
        elif not self._begin(data):
            super().data_received(data)
        if self._busy():
            self._has_asked = True
            self._head_seen()
        else:
            # A part of a head, or the rest of a body after an early answer: either has its time.
            self._await_head()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(_LINGER, self.transport.abort)
        elif self._missing or (not self._busy() and self.conn.their_state is not h11.IDLE):
            self._await_head()
        elif self._rest:
            rest, self._rest = self._rest, b""
            self.data_received(rest)

    def _begin(self, data: bytes) -> bool:
        """Begin to answer a plain request; False where it is another one."""
        conn = self.conn
        if self._busy() or conn.their_state is not h11.IDLE or conn.trailing_data[0]:
            return False
        plain = read_head(data)
        if plain is None:
            return False
        self._unset_keepalive_if_required()
        method, target, headers, length, self._missing = plain
        scope = self._scope_of(method, target, headers)
        self.scope, self.headers = scope, headers
        self.cycle = cycle = PlainCycle(
            scope=scope,
            conn=conn,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        scope["extensions"] = {HANG_UP: cycle}
        cycle.more_body = self._missing > 0
        if len(data) > length or not self._missing:
            self._take(data[length:])
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return True

    def _scope_of(self, method: bytes, target: bytes, headers: Headers) -> Any:
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method.decode("ascii"),
            "root_path": self.root_path,
            "path": self.root_path + (unquote(path) if "%" in path else path),
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": query,
            "headers": headers,
            "state": self.app_state.copy(),
        }

    def _take(self, data: bytes) -> None:
        """Take what comes after the head of a plain request: its body, then another request."""
        body, after = data[: self._missing], data[self._missing :]
        self._missing -= len(body)
        if self._busy():
            self.cycle.body += body
            self.cycle.more_body = self._missing > 0
            self.cycle.message_event.set()
        if after and self._busy():
            # It waits until this one is answered.
            self._rest += after
            self.flow.pause_reading()
        elif after:
            self.data_received(after)
        elif self._busy() and len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.options.write_seconds, self.transport.abort)

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    @override
    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(_LINGER, self.transport.abort)

    @override
    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # In the middle of an answer nothing else can be said.
            self.transport.abort()
            return
        if self._busy():
            # Its body is broken: whoever reads it is told that the client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        message = "This is no valid HTTP request, or its head is larger than 16 KiB."
        self._refuse(400, "Bad Request", "invalid_http", message, "")

    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.options.header_seconds, self._too_slow)

    def _head_seen(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._busy() or self.transport.is_closing():
            return
        seconds = f"{self.options.header_seconds:g}"
        message = f"The head of a request has to arrive within {seconds} seconds."
        message += " " + option_of("header_seconds")
        if self._has_asked:
            self._close()
        else:
            self._refuse(408, "Request Timeout", "timeout", message, "")

    def _refuse(self, status: int, reason: str, kind: str, message: str, more: str) -> None:
        """Answer what no application has seen, and close."""
        error: dict[str, Any] = {"message": message, "type": kind, "param": None, "code": None}
        body = json.dumps({"error": error})
        self.transport.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n{body}".encode()
        )
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self.loop.call_later(_LINGER, self.transport.abort)


def bounded_http(options: ServeOptions) -> type[BoundedHttp]:
    """The protocol of a server with these limits."""
    return type("BoundedHttp", (BoundedHttp,), {"options": options})
