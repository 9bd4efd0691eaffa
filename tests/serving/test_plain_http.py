from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.serving.plain_http import read_head

HEAD = b"POST /v1/predict?a=b HTTP/1.1\r\nHost: x:80\r\nContent-Length: 2\r\nX-A:  b c\t\r\n\r\n"


def by_h11(data: bytes) -> h11.Request | None:
    """What h11 reads of it; None where it is wrong, or not all here."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


def test_a_plain_head_is_what_h11_reads() -> None:
    plain, theirs = read_head(HEAD + b"{}"), by_h11(HEAD)
    assert plain is not None
    assert theirs is not None
    method, target, headers, length, body = plain
    assert (method, target) == (theirs.method, theirs.target) == (b"POST", b"/v1/predict?a=b")
    assert headers == [*theirs.headers]
    assert (length, body) == (len(HEAD), 2)


@pytest.mark.parametrize(
    "head",
    [
        HEAD[:-2],  # not all of it
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HEAD.replace(b"POST", b"PUT"),
        HEAD.replace(b"/v1", b"http://x/v1"),
        HEAD.replace(b"\r\nX-A", b"\nX-A"),
        HEAD.replace(b"X-A", b" X-A"),
        HEAD.replace(b"X-A", b"X A"),
        HEAD.replace(b"X-A", b"X-A "),
        HEAD.replace(b"b c", b"b\x00c"),
        HEAD.replace(b"b c", b"b\xffc"),
        HEAD.replace(b"X-A:  b c", b"Host: y"),
        HEAD.replace(b"X-A:  b c", b"Content-Length: 2"),
        HEAD.replace(b"X-A:  b c", b"Transfer-Encoding: chunked"),
        HEAD.replace(b"X-A:  b c", b"Expect: 100-continue"),
        HEAD.replace(b"X-A:  b c", b"Connection: close"),
        HEAD.replace(b"X-A:  b c", b"Upgrade: websocket"),
        HEAD.replace(b"Length: 2", b"Length: +2"),
        HEAD.replace(b"Length: 2", b"Length: 2, 2"),
        HEAD.replace(b"Length: 2", b"Length: 123456789"),
        HEAD.replace(b"Host: x:80\r\n", b""),
    ],
)
def test_what_may_be_framed_in_another_way_is_left_to_h11(head: bytes) -> None:
    assert read_head(head) is None


@given(
    at=st.integers(0, len(HEAD)),
    gone=st.integers(0, 3),
    put=st.binary(max_size=3) | st.sampled_from([b"\r\n", b"\n", b": ", b"Host: y\r\n", b",2"]),
)
def test_what_is_read_is_never_read_otherwise_by_h11(at: int, gone: int, put: bytes) -> None:
    data = HEAD[:at] + put + HEAD[at + gone :]
    plain = read_head(data)
    if plain is not None:
        theirs = by_h11(data)
        assert theirs is not None
        assert plain[:3] == (theirs.method, theirs.target, [*theirs.headers])
        lengths = [int(value) for name, value in theirs.headers if name == b"content-length"]
        assert (lengths or [0]) == [plain[4]]
