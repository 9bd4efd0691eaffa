"""The requests that nearly all clients send, read and answered with little work.

h11 reads any request that the standard allows, a piece at a time, and checks each header that is
sent back. Most requests are plain: their head comes whole, says nothing of how it is to be framed
but `Content-Length`, and is HTTP/1.1. What is plain beyond doubt is read here; all else is h11's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from typing_extensions import override
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, RequestResponseCycle

#: A head: method, target, headers. Only printable ASCII, no line goes on in the next one, and each
#: part ends where the next begins, so that no byte is looked at twice.
_HEAD = re.compile(
    rb"(GET|POST) (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[ \t!-~]*+\r\n)++)\r\n"
)
#: Headers about the connection, whose meaning is h11's business.
_FRAMING = frozenset(
    (b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"proxy-connection")
) | {b"http2-settings", b"keep-alive"}
_KEEP = (b"keep-alive", b"Keep-Alive")
#: Bytes of a body, in digits: larger ones are few.
_MAX_DIGITS = 7
#: Headers of an answer whose body has no length, and statuses of answers without a body.
_CHUNKED = b"transfer-encoding: chunked\r\n"
_WITHOUT_BODY = (204, 304)

Headers = list[tuple[bytes, bytes]]


def read_head(data: bytes) -> tuple[bytes, bytes, Headers, int, int] | None:
    """Read the head of a plain request.

    Args:
        data: what a client sent, from the beginning of a request.

    Returns:
        method, target, headers with small names, the length of the head and that of the body; None
        where it is not all here, or not plain.
    """
    match = _HEAD.match(data)
    if match is None:
        return None
    method, target, lines = match.groups()
    headers, length, hosts = Headers(), None, 0
    for line in lines[:-2].split(b"\r\n"):
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in _FRAMING or (name == b"connection" and value not in _KEEP):
            return None
        if name == b"content-length":
            if length is not None or not value.isdigit() or len(value) > _MAX_DIGITS:
                return None
            length = int(value)
        hosts += name == b"host"
        headers.append((name, value))
    if hosts != 1:
        return None
    return method, target, headers, match.end(), length or 0


class PlainCycle(RequestResponseCycle):
    """A plain request while it is answered: the answer is written without h11.

    Attributes:
        hung_up: called when the client is gone before its answer; set by whoever wants to know.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.hung_up: Callable[[], None] | None = None
        self._head, self._chunked = b"", False

    def tell_hung_up(self) -> None:
        """Tell whoever wants to know that the client is gone."""
        if self.hung_up is not None:
            self.hung_up()

    @override
    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if self.response_complete or (kind == "http.response.body") is not self.response_started:
            raise RuntimeError(f"'{kind}' is not what is to be sent now")
        if not self.response_started:
            self.response_started = True
            self._begin(message["status"], [*self.default_headers, *message.get("headers", ())])
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (
                b"" if more else b"0\r\n\r\n"
            )
        # Head and body go together: one call of the system, and one packet.
        self.transport.write(self._head + body)
        self._head = b""
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _begin(self, status: int, headers: Headers) -> None:
        """Write the head of an answer; it goes out with the body where that has a length."""
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, STATUS_PHRASES[status])]
        lines += [b"%b: %b\r\n" % pair for pair in headers]
        sized = any(name == b"content-length" for name, _ in headers)
        self._chunked = not sized and status not in _WITHOUT_BODY
        if self._chunked:
            lines.append(_CHUNKED)
        if CLOSE_HEADER in headers:
            self.keep_alive = False
        self._head = b"".join((*lines, b"\r\n"))
        if self._head.count(b"\n") != len(lines) + 1 or self._head.count(b"\r") != len(lines) + 1:
            raise RuntimeError("a header of an answer has the end of a line in it")
        if self._chunked:
            self.transport.write(self._head)
            self._head = b""
