"""TensorFlow's checkpoint format, the tensor bundle, read without TensorFlow.

`<prefix>.index` is a sorted string table in LevelDB's format: blocks of prefix-compressed keys,
with checksums. An index block lists them, and a footer says where the index block is. The values
are protocol buffers that give the place of a tensor's bytes in `<prefix>.data-00000-of-00001`.
Sources: LevelDB's `doc/table_format.md`; TensorFlow's `core/protobuf/tensor_bundle.proto` and
`core/util/tensor_bundle/tensor_bundle.cc`.

Nothing in the files is trusted: no size leads to an allocation larger than the file itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.errors import CheckpointError
from pretune.text.protobuf import MalformedError, as_message, as_number, read_fields, read_varint

Bytes = NDArray[np.uint8]

#: An index has about a hundred bytes for each tensor: 200 KB for BERT-large with its optimizer.
LARGEST_INDEX = 2**24

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5  # after a block: its compression (one byte) and its checksum
_COMPRESSION = {0: "none", 1: "snappy"}
#: There is a full key at least every 16 entries, so keys are at most 16 times the stored bytes.
_KEY_GROWTH = 16
_MOST_AXES = 8
_FORMAT_VERSION = 1


# CRC32C (RFC 3720, appendix B.4). Polynomials are over GF(2), with the highest power first.

#: The multiple x^n + x^a + x^b + 1 of the CRC's polynomial, as (n - a, n - b, n). Raised to the
#: power 2^k (the Frobenius map), it still has four terms, with all exponents multiplied by 2^k.
_GAPS = (5685 - 1362, 5685 - 426, 5685)
#: The multiples to fold by, in this order: exponents in units of this many bytes.
_UNITS = (8, 1)
_BLOCK = 2**18


def _crc_table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes | Bytes) -> int:
    """The CRC32C checksum of bytes (`[n]`, uint8), at gigabytes per second for long inputs.

    Moving a byte to the later places given by `_GAPS` does not change the remainder. Whole blocks
    are folded in this way into the bytes after them, by exclusive or, until a few thousand bytes
    are left for the usual table.
    """
    values = np.frombuffer(data, np.uint8)
    crc = 0xFFFFFFFF
    for unit in _UNITS:
        if values.size > 2 * unit * _GAPS[-1]:
            values, crc = _fold(values, unit, crc), 0
    for byte in values.tobytes():
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _fold(values: Bytes, unit: int, start: int) -> Bytes:
    """Fold bytes (`[n]` to `[unit * _GAPS[-1]]`) without changing their remainder.

    Args:
        values: the bytes; not changed.
        unit: factor of the exponents; see `_UNITS`.
        start: the state of the CRC before the first byte, which is added to the first bytes. The
            result belongs to the state 0.
    """
    gaps = [gap * unit for gap in _GAPS]
    near, far = gaps[0], gaps[-1]
    total = values.size - far
    work = np.zeros(far + _BLOCK, np.uint8)  # the bytes folded last, and the block to fold
    for begin in range(0, total, _BLOCK):
        size = min(_BLOCK, total - begin)
        # Load the next block behind the bytes that were folded last.
        work[far : far + size] = values[begin : begin + size]
        if begin == 0:
            work[far : far + 4] ^= np.frombuffer(start.to_bytes(4, "little"), np.uint8)
        # Fold earlier bytes into it, as many at a time as do not depend on each other.
        for at in range(far, far + size, near):
            end = min(at + near, far + size)
            for gap in gaps:
                work[at:end] ^= work[at - gap : end - gap]
        work[:far] = work[size : size + far]
    rest = values[total:].copy()
    for gap in gaps:
        rest[:gap] ^= work[far - gap : far]
    return rest


def masked_crc(data: bytes | Bytes) -> int:
    """The checksum as LevelDB stores it: rotated and shifted."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# The table.


def _block(raw: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block."""
    # Bounds, checksum and compression.
    if offset + size + _TRAILER > len(raw) - _FOOTER or size < 4:
        raise MalformedError("a block lies outside the file")
    stored = int.from_bytes(raw[offset + size + 1 : offset + size + _TRAILER], "little")
    if masked_crc(raw[offset : offset + size + 1]) != stored:
        raise MalformedError("the checksum of a block is wrong")
    if raw[offset + size] != 0:
        kind = _COMPRESSION.get(raw[offset + size], "an unknown way")
        raise MalformedError(f"a block is compressed ({kind}), which TensorFlow never writes here")
    data = raw[offset : offset + size]
    end = size - 4 - 4 * int.from_bytes(data[-4:], "little")  # restart points: not needed
    if end < 0:
        raise MalformedError("a block has more restart points than bytes")
    # Each key repeats the first bytes of the key before it.
    at, key, budget = 0, b"", _KEY_GROWTH * size
    while at < end:
        shared, at = read_varint(data, at)
        own, at = read_varint(data, at)
        length, at = read_varint(data, at)
        budget -= shared + own
        if shared > len(key) or own + length > end - at or budget < 0:
            raise MalformedError("a key or value lies outside its block")
        key = key[:shared] + data[at : at + own]
        at += own + length
        yield key, data[at - length : at]


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Read a block handle: offset and size of a block; also the place after the handle."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return offset, size, at


def _table(raw: bytes) -> dict[bytes, bytes]:
    """All keys and values of a sorted string table."""
    if len(raw) < _FOOTER or raw[-8:] != _MAGIC:
        raise MalformedError("not the index of a TensorFlow checkpoint, or cut off")
    # The footer: the handle of a block of extras, always empty, and that of the index block.
    footer = raw[-_FOOTER:-8]
    *extras, at = _handle(footer, 0)
    offset, size, at = _handle(footer, at)
    if any(footer[at:]) or any(_block(raw, *extras)):
        raise MalformedError("its footer is not TensorFlow's")
    table: dict[bytes, bytes] = {}
    last, used = None, 0
    for _, handle in _block(raw, offset, size):
        offset, size, _ = _handle(handle, 0)
        # Blocks and keys are in order, so that no block is read twice, however often it is listed.
        if offset < used:
            raise MalformedError("blocks are not in order")
        used = offset + size + _TRAILER
        for key, value in _block(raw, offset, size):
            if last is not None and key <= last:
                raise MalformedError("keys are not in order")
            table[key] = value
            last = key
    return table


@dataclass(frozen=True)
class BundleEntry:
    """Where a tensor is stored."""

    dtype: int  # TensorFlow's number for the type
    shape: tuple[int, ...]  # of the whole tensor
    shard: int  # the number of the data file
    offset: int  # the place in that file
    size: int  # in bytes
    crc: int  # masked checksum of the bytes
    sliced: bool  # whether the tensor is stored in several entries (a partitioned variable)

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def _shape(data: bytes) -> tuple[int, ...]:
    shape = []
    for number, value in read_fields(data):
        if number == 2:
            sizes = [as_number(size) for key, size in read_fields(as_message(value)) if key == 1]
            shape.append(sizes[-1] if sizes else 0)
            if len(shape) > _MOST_AXES:
                raise MalformedError(f"a tensor of more than {_MOST_AXES} axes")
    # Axes of size 0 count as 1: torch cannot hold an empty tensor of absurd sizes either.
    if math.prod(max(size, 1) for size in shape) >= 2**60:
        raise MalformedError("a tensor of absurd size")
    return tuple(shape)


def _entry(data: bytes) -> BundleEntry:
    """Parse a BundleEntryProto."""
    shape: tuple[int, ...] = ()
    sliced = False
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)
    for number, value in read_fields(data):
        if number == 2:
            shape = _shape(as_message(value))
        elif number == 7:
            sliced = True
        elif number in numbers:
            numbers[number] = as_number(value)
    dtype, shard, offset, size, crc = numbers.values()
    return BundleEntry(dtype, shape, shard, offset, size, crc, sliced)


def _header(data: bytes) -> int:
    """Parse a BundleHeaderProto: the number of data files."""
    fields = dict(read_fields(data))
    if as_number(fields.get(2, 0)) != 0:
        raise MalformedError("written on a big-endian machine, which cannot be read")
    version = dict(read_fields(as_message(fields.get(3, b""))))
    if as_number(version.get(2, 0)) > _FORMAT_VERSION:
        raise MalformedError("of a newer format than this reader knows")
    return as_number(fields.get(1, 0))


class TensorBundle:
    """A TensorFlow checkpoint: `entries` by name, and their bytes.

    Args:
        prefix: the files' common start, e.g. `folder/bert_model.ckpt`.

    Raises:
        CheckpointError: missing, damaged, or cut off; names the file.
    """

    def __init__(self, prefix: Path) -> None:
        self.index = prefix.with_name(prefix.name + ".index")
        try:
            self._shards, self.entries = _parse(_read_index(self.index))
        except ValueError as error:  # ours, or a key that is not UTF-8
            raise CheckpointError(f"{self.index}: damaged: {error}", "Copy it again.") from None
        self._prefix = prefix
        sizes: dict[int, int] = {}
        for name, entry in self.entries.items():
            self._check_extent(name, entry, sizes)

    def file_of(self, name: str) -> Path:
        """The data file of a tensor."""
        shard = self.entries[name].shard
        end = f".data-{shard:05d}-of-{self._shards:05d}"
        return self._prefix.with_name(self._prefix.name + end)

    def read(self, name: str) -> Bytes:
        """Read the bytes of a tensor (`[size]`).

        Raises:
            CheckpointError: damaged, or cut off since it was opened; names file and tensor.
        """
        entry, path = self.entries[name], self.file_of(name)
        # Not mapped: a file that is cut short while it is read would end the process.
        data = np.empty(entry.size, np.uint8)
        try:
            with path.open("rb") as file:
                file.seek(entry.offset)
                whole = file.readinto(data.data) == entry.size
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error})", "Copy it again.") from None
        if not whole or masked_crc(data) != entry.crc:
            raise CheckpointError(
                f"{path}: '{name}' is damaged (its checksum is wrong)", "Copy the file again."
            )
        return data

    def _check_extent(self, name: str, entry: BundleEntry, sizes: dict[int, int]) -> None:
        """Check that a tensor is inside its file; `sizes` caches the sizes of the files."""
        if entry.sliced:
            return
        if entry.shard >= self._shards:
            raise CheckpointError(
                f"{self.index}: damaged: '{name}' is in data file {entry.shard + 1} of "
                f"{self._shards}",
                "Copy it again.",
            )
        # The file must exist and be long enough.
        path = self.file_of(name)
        if entry.shard not in sizes:
            try:
                sizes[entry.shard] = path.stat().st_size
            except OSError:
                raise CheckpointError(
                    f"{self.index}: names {path.name}, which is missing", "Copy all files."
                ) from None
        if entry.offset + entry.size > sizes[entry.shard]:
            raise CheckpointError(
                f"{path}: cut off: '{name}' ends after the file's end", "Copy the file again."
            )


def _read_index(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise MalformedError(f"larger than {LARGEST_INDEX:,} bytes")
        return path.read_bytes()
    except OSError as error:
        reason: Any = error.strerror or error
        raise CheckpointError(f"{path}: cannot be read ({reason})", "Copy it again.") from None


def _parse(raw: bytes) -> tuple[int, dict[str, BundleEntry]]:
    """The number of data files, and the entries by name."""
    table = _table(raw)
    if b"" not in table:
        raise MalformedError("has no header")
    shards = _header(table.pop(b""))
    # Keys that start with a zero byte are pieces of partitioned variables.
    return shards, {
        key.decode("utf-8"): _entry(value)
        for key, value in table.items()
        if not key.startswith(b"\0")
    }
