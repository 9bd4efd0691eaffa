"""JSON from strangers, beside what Python's own reader makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.serving.json_body import _object, json_bytes, parse_json
from pretune.serving.refusal import Refusal
from tests.serving.live_server import some_options

LIMITS = some_options(max_depth=6, max_values=40)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text() | st.floats(width=32),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=6),
    max_leaves=60,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = [*value.values()]
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(values, st.booleans())
def test_reads_what_pythons_reader_reads_within_the_limits(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        read = parse_json(text.encode("utf-8", "surrogatepass"), LIMITS)
    except Refusal as refusal:
        if refusal.limit == "max_depth":
            assert depth_of(value) > 6
        elif refusal.limit == "max_values":
            assert text.count(",") + text.count("[") + text.count("{") > 39
        else:
            assert "NaN" in text or "Infinity" in text or "\\ud" in text or not ascii_only
    else:
        assert depth_of(value) <= 6
        assert json.dumps(read) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "Expecting value (line 1, column 1)"),
        (b"{", 400, "line 1, column 2"),
        (b'{"a": 1} x', 400, "Extra data"),
        (b'{"a": "\xff"}', 400, "not valid UTF-8: byte 0xff at 7"),
        (b'{"a": "\xed\xa0\x80"}', 400, "not valid UTF-8"),
        (b'{"a": NaN}', 400, "NaN is no JSON"),
        (b'{"a": [-Infinity]}', 400, "-Infinity is no JSON"),
        (b'{"a": 1e999}', 400, "infinite"),
        (b'{"a": ' + b"9" * 5000 + b"}", 400, "5,000 digits"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', 400, 'The key "c" occurs twice'),
        (b'{"a": "\\ud83d"}', 400, "half of a surrogate pair"),
        (b'{"\\udc00": 1}', 400, "half of a surrogate pair"),
        (b"[" * 1_000_000, 400, "nested 1,000,000 levels deep; the limit is 6"),
        (b'{"a":' * 1_000_000, 400, "1,000,000 levels"),
        (b"[" + b"[]," * 1_000_000, 413, "over 40 values"),
        (b"[" + b"1," * 1_000_000, 413, "over 40 values"),
        (b'"\\' * 500_000, 400, "not JSON"),
        (b'"' + b'\\"' * 500_000, 400, "not JSON"),
        (b"\xef\xbb\xbf{}", 400, "BOM"),
    ],
)
def test_what_is_refused(body: bytes, status: int, said: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_json(body, LIMITS)
    assert refused.value.status == status
    assert said in refused.value.message


def test_what_stands_in_a_string_does_not_count() -> None:
    text = '[[[[[["' + '[{,\\"\\\\' * 1000 + '"]]]]]]'
    assert parse_json(text.encode(), LIMITS) == json.loads(text)
    assert parse_json(b'{"a": "\\ud83d\\ude00"}', LIMITS) == {"a": "\U0001f600"}


def test_a_key_that_is_there_twice_is_seen_in_one_pass() -> None:
    compared = 0

    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    keys = [Key(number) for number in range(500)]
    with pytest.raises(Refusal, match='The key "499" occurs twice'):
        _object([(key, 1) for key in (*keys, Key(499))])
    assert compared < 2000


def test_answers_are_json_whatever_is_in_them() -> None:
    value = {"a": [float("nan"), 1.5, (float("inf"),)], "b": "\ud83d好"}
    assert json.loads(json_bytes(value)) == {"a": [None, 1.5, [None]], "b": "?好"}
