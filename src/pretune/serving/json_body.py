"""JSON from strangers: bounded before it is parsed, and read strictly."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
from starlette.requests import Request

from pretune.serving.options import ServeOptions
from pretune.serving.refusal import Refusal, over_limit

#: A string of JSON, or the rest where its end is missing: no position is looked at twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
#: All bytes but those that begin or end a value within another.
_OTHER = bytes(set(range(256)) - set(b"[]{},"))
#: An escape for half of a surrogate pair; a pair is a character, a half alone is none.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
#: More digits are no number that anybody needs.
_MAX_DIGITS = 30
#: A larger body is parsed beside the event loop.
_LARGE = 1 << 16
#: One at a time: parsing takes memory, and each further thread would keep some of its own.
_PARSER = ThreadPoolExecutor(1, "json")
#: What a page of another site may send without being asked whether it may.
_OF_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")


async def json_value(request: Request) -> Any:
    """Parse the body of a request.

    Raises:
        Refusal: 400 it is no JSON, or says one thing twice, or is nested too deeply; 413 it has too
            many values; 415 it is the content of a form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _OF_FORMS:
        raise Refusal(
            415,
            "content_type",
            f"The body is JSON, but Content-Type says {kind}. Send Content-Type: application/json.",
        )
    body, options = await request.body(), request.app.state.options
    if len(body) < _LARGE:
        return parse_json(body, options)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, parse_json, body, options)


def parse_json(body: bytes, options: ServeOptions) -> Any:
    """Parse JSON that anybody may have sent; see `json_value`."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(
            f"The body is not valid UTF-8: byte 0x{body[error.start]:02x} at {error.start:,}."
        ) from None
    if text.startswith("\ufeff"):
        raise _unreadable("The body is not JSON: it begins with a byte-order mark (BOM).")
    _check_size(body, options)
    try:
        value = _READER.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _unreadable(f"The body is not JSON: {error.msg} ({place}).") from None
    if _HALF.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _unreadable(
                "The body has an escape for half of a surrogate pair, which is no character."
            ) from None
    return value


def _check_size(body: bytes, options: ServeOptions) -> None:
    """Refuse JSON that is nested too deeply or has too many values, before objects are made."""
    # What has fewer brackets and bytes than that needs no closer look.
    brackets = body.count(b"[") + body.count(b"{")
    if brackets <= options.max_depth and len(body) <= options.max_values:
        return
    marks = np.frombuffer(_STRING.sub(b"", body).translate(None, _OTHER), np.uint8)
    opening = (marks == ord("[")) | (marks == ord("{"))
    closing = (marks == ord("]")) | (marks == ord("}"))
    steps = opening.astype(np.int8) - closing
    depth = np.cumsum(steps, dtype=np.int32).max(initial=0)
    if depth > options.max_depth:
        raise over_limit(
            400,
            "max_depth",
            f"The JSON is nested {depth:,} levels deep; the limit is {options.max_depth}.",
        )
    values = len(marks) - int(closing.sum()) + 1
    if values > options.max_values:
        raise over_limit(
            413,
            "max_values",
            f"The JSON has over {options.max_values:,} values, which is the limit.",
        )


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set[str]()
        for name, _ in pairs:
            if name in seen:
                raise _unreadable(f"The key {json.dumps(name[:80])} occurs twice in an object.")
            seen.add(name)
    return made


def _constant(name: str) -> NoReturn:
    raise _unreadable(f"{name} is no JSON, and no number.")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _unreadable("A number is too large: it would be infinite.")
    return value


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _unreadable(f"A whole number has {len(digits):,} digits.")
    return int(digits)


def _unreadable(message: str) -> Refusal:
    return Refusal(400, "invalid_json", message)


_READER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
)
_WRITER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_bytes(value: Any) -> bytes:
    """Write an answer as JSON; NaN and infinity, which JSON has not, become null."""
    try:
        text = _WRITER.encode(value)
    except ValueError:
        text = _WRITER.encode(_finite(value))
    # Half of a surrogate pair in a model's own text.
    return text.encode(errors="replace")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
