"""The wire format of protocol buffers, read without their library and without trusting a byte.

Source: https://protobuf.dev/programming-guides/encoding. No size leads to an allocation that is
larger than what is read from.
"""

from __future__ import annotations

from collections.abc import Iterator

#: The wire types of a number, of 8 bytes, of bytes, and of 4 bytes.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedError(ValueError):
    """Describes what is wrong; the caller adds the name of the file."""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of up to 64 bits; also the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise MalformedError("a number is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value & 2**64 - 1, at
    raise MalformedError("a number of more than 64 bits")


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: field number, and an integer or bytes."""
    at = 0
    while at < len(data):
        # The tag: a field's number and its wire type.
        tag, at = read_varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = read_varint(data, at)
            yield tag >> 3, value
            continue
        # The size: given for bytes, fixed for 64-bit and 32-bit numbers.
        if kind == _BYTES:
            size, at = read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise MalformedError(f"a field of the unknown kind {kind}")
        if size > len(data) - at:
            raise MalformedError("a field is cut off")
        piece, at = data[at : at + size], at + size
        yield tag >> 3, piece if kind == _BYTES else int.from_bytes(piece, "little")


def as_number(value: int | bytes) -> int:
    """Check that a field is a whole number that is not negative."""
    if isinstance(value, bytes) or value >= 2**63:
        raise MalformedError("not a whole number where one is expected")
    return value


def as_message(value: int | bytes) -> bytes:
    """Check that a field is bytes: of a message, or of a text."""
    if isinstance(value, int):
        raise MalformedError("a number where a message is expected")
    return value
