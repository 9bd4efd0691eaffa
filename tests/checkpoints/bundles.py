"""A writer of tensor bundles, for what TensorFlow would not write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures" / "tensorflow"
INDEX, DATA = "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"


def slow_crc(data: bytes) -> int:
    """Bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = slow_crc(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(items: list[tuple[bytes, bytes]]) -> bytes:
    """Without prefix compression; one restart point."""
    entries = (varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in items)
    return b"".join(entries) + bytes(4) + (1).to_bytes(4, "little")


def sealed(data: bytes, kind: int = 0) -> bytes:
    return data + bytes([kind]) + masked(data + bytes([kind]))


def table(blocks: list[bytes], index: bytes | None = None, kind: int = 0) -> bytes:
    """A file of these blocks, with right checksums."""
    raw, handles = b"", []
    for data in blocks:
        handles.append((bytes([len(handles)]), varint(len(raw)) + varint(len(data))))
        raw += sealed(data, kind)
    index = block(handles) if index is None else index
    extras = block([])
    footer = b"".join(
        varint(n) for n in (len(raw), len(extras), len(raw) + len(extras) + 5, len(index))
    )
    magic = (0xDB4775248B80FB57).to_bytes(8, "little")
    return raw + sealed(extras) + sealed(index) + footer.ljust(40, b"\0") + magic


def entry(values: np.ndarray, **other: int | bytes) -> bytes:
    raw = values.tobytes()
    shape = b"".join(field(2, field(1, size)) for size in values.shape)
    fields = {"dtype": 1, "shape": shape, "shard": 0, "offset": 0, "size": len(raw)} | other
    crc = varint(6 << 3 | 5) + masked(raw)
    return b"".join(field(at, value) for at, value in enumerate(fields.values(), 1)) + crc


HEADER = (b"", field(1, 1) + field(3, field(1, 1)))
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(folder: Path, *items: tuple[bytes, bytes], header: tuple[bytes, bytes] = HEADER) -> Path:
    (folder / INDEX).write_bytes(table([block([header, *items])]))
    (folder / DATA).write_bytes(VALUES.tobytes())
    return folder
