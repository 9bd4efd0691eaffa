"""Clients that speak HTTP badly, slowly, or only in part."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.serving.fake_service import FakeService
from tests.serving.live_server import LiveServer, rest_of, some_options, wait_until

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"inputs": ["the good film"]}).encode()
GET = b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n"


@pytest.fixture(scope="module")
def hasty(fake: FakeService) -> Iterator[LiveServer]:
    """A server that waits for nobody."""
    seconds = {"header_seconds": 0.4, "body_seconds": 0.4}
    with closing(LiveServer(fake, some_options(max_body=100_000, **seconds))) as live:
        yield live


def asked(body: bytes = BODY, more: bytes = b"") -> bytes:
    return HEAD + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_who_sends_a_head_byte_by_byte_is_cut_off(hasty: LiveServer) -> None:
    with hasty.connect() as connection:
        connection.settimeout(0.05)
        received = b""
        for byte in GET * 9:  # never a blank line
            try:
                connection.sendall(bytes([byte]))
                received += connection.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if received:
                break
        received += rest_of(connection)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"within 0.4 seconds" in received
    assert hasty.is_well()


def test_many_who_are_slow_keep_nobody_waiting(hasty: LiveServer) -> None:
    slow = [hasty.connect() for _ in range(100)]
    for connection in slow:
        connection.sendall(GET)
    assert hasty.is_well()
    for connection in slow:
        with connection:
            assert rest_of(connection).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: hasty.connections == 0)


def test_who_says_nothing_is_cut_off(hasty: LiveServer) -> None:
    assert hasty.raw(b"").startswith(b"HTTP/1.1 408 ")


def test_who_sends_a_body_slowly_is_told(hasty: LiveServer) -> None:
    received = hasty.raw(HEAD + b"Content-Length: 100\r\n\r\n{")
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"body_seconds" in received
    wait_until(lambda: hasty.app.state.traffic.held == 0)  # it answers before it forgets


def test_who_goes_on_sending_after_an_early_answer_is_cut_off(hasty: LiveServer) -> None:
    with hasty.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 5000000\r\n\r\n")
        # The server closes, although more was announced.
        assert rest_of(connection).startswith(b"HTTP/1.1 413 ")


def test_a_large_body_may_be_sent_to_its_end(server: LiveServer) -> None:
    reply = server.post(b" " * 5_000_000)
    assert reply.status == 413


def test_connections_are_kept(server: LiveServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with closing(connection):
        for _ in range(2):
            connection.request("POST", "/v1/predict", BODY)
            response = connection.getresponse()
            assert response.status == 200
            response.read()
        # That of a test before may not have ended yet.
        wait_until(lambda: server.connections == 1)


def test_requests_may_follow_without_waiting(server: LiveServer) -> None:
    received = server.raw(asked() + asked() + GET + b"Connection: close\r\n\r\n")
    assert received.count(b"HTTP/1.1 200 ") == 3


def test_who_closes_half_a_connection(server: LiveServer) -> None:
    with server.connect() as connection:
        connection.sendall(asked()[:-5])
        connection.shutdown(socket.SHUT_WR)
        assert rest_of(connection) == b""
    wait_until(lambda: not server.app.state.traffic.tasks)
    assert server.is_well()


#: Each with a request that hides behind it, were one of the two lengths believed.
HIDDEN = b"GET /metrics HTTP/1.1\r\nHost: [::1]\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 40\r\n",
        b"Content-Length: 4, 40\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 4\r\nContent-Length : 40\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\n Transfer-Encoding: chunked\r\n",
        b"X: a\rContent-Length: 4\r\n",
        b"X: a\x00b\r\n",
    ],
)
def test_no_request_hides_behind_another(server: LiveServer, lines: bytes) -> None:
    received = server.raw(HEAD + lines + b"\r\n0\r\n\r\n" + HIDDEN)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"pretune_requests" not in received
    assert server.is_well()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    ],
)
def test_what_is_no_http(server: LiveServer, sent: bytes) -> None:
    received = server.raw(sent)
    # A client that is still sending may lose the answer to a reset.
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")
    assert server.is_well()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"PRI * HTTP/2.0\r\nHost: [::1]\r\n\r\nSM\r\n\r\n", b"505"),
        (b"GET / HTTP/9.9\r\nHost: [::1]\r\n\r\n", b"505"),
        (
            b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n",
            b"431",
        ),
        (GET + b"A: b\r\n" * 5_000 + b"Connection: close\r\n\r\n", b"431"),
    ],
)
def test_heads_that_are_refused(server: LiveServer, sent: bytes, status: bytes) -> None:
    received = server.raw(sent)
    assert received.startswith((b"HTTP/1.1 " + status, b"HTTP/1.1 400 "))
    assert server.is_well()


def test_a_broken_chunk_ends_the_connection(server: LiveServer) -> None:
    received = server.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    wait_until(lambda: not server.app.state.traffic.tasks)


def test_who_waits_to_be_told_to_go_on(server: LiveServer) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 9000000\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    with server.connect() as connection:
        more = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        connection.sendall(HEAD + more)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert b" 200 " in connection.recv(10_000)


def test_there_are_only_so_many_connections(fake: FakeService) -> None:
    with closing(LiveServer(fake, some_options(max_connections=3))) as live:
        held = [live.connect() for _ in range(3)]
        wait_until(lambda: live.connections == 3)
        refused = live.raw(b"")
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"3 connections" in refused
        for connection in held:
            connection.close()
        wait_until(lambda: live.connections == 0)
        assert live.is_well()


def test_who_does_not_read_is_cut_off(fake: FakeService) -> None:
    """Answers that fill every buffer on the way end the connection, and not the memory."""
    with closing(LiveServer(fake, some_options(write_seconds=0.2))) as live:
        body = json.dumps({"inputs": ["the good film"] * 500}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", live.port))
            connection.setblocking(False)
            requests = asked(body) * 60
            with suppress(BlockingIOError):
                connection.sendall(requests)
            wait_until(lambda: live.connections == 1)
            wait_until(lambda: live.connections == 0)
        assert live.is_well()
