"""GGUF files (llama.cpp): their entries and tensors, by memory map.

A file is a header, which names everything that follows, and the tensors' bytes. It comes from
anybody: no number in it is believed before it is compared with the size of the file.
Source: docs/gguf.md of ggml, version 3 (version 2 is laid out in the same way).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretune.checkpoints.gguf_blocks import (
    FORMATS,
    OTHER_FORMATS,
    NumberFormat,
    blocks_to_tensor,
)
from pretune.checkpoints.unsupported import GGUF_MAGIC
from pretune.data.arrays import Array
from pretune.errors import CheckpointError
from pretune.models.config import brief
from pretune.text.file_kinds import refuse_lfs_pointer
from pretune.text.terminal import in_line

VERSIONS = (2, 3)
#: More entries or tensors than any model has.
_MOST_ITEMS = 100_000
#: Longer names and texts than any model has, in bytes.
_LONGEST_NAME, _LONGEST_TEXT = 4096, 16 << 20
#: More elements than all lists of a file have together: a vocabulary with its scores and merges.
_MOST_ELEMENTS = 4_000_000
#: A tensor has this many dimensions at most (GGML_MAX_DIMS).
_MOST_DIMENSIONS = 4
#: Where `general.alignment` is missing.
_USUAL_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 1 << 20
#: Numbers that are converted at a time, which bounds the memory that this takes.
_PIECE = 1 << 22

#: The types of entries by their number: how numpy calls them.
_NUMBERS = {
    **dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))),
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_TEXT, _LIST = 8, 9
_AGAIN = "Copy the file again."


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file: what is known without reading its values."""

    name: str
    shape: tuple[int, ...]  # as numpy has it: rows first. (The file counts the other way.)
    kind: NumberFormat
    start: int  # its first byte in the file
    size: int  # in bytes


class GgufFile:
    """A file, with its header read and checked.

    Args:
        path: of the file.

    Attributes:
        entries: by name: whole and other numbers, truths, texts, and lists of one kind of these.
        tensors: by name, in the order of the file.

    Raises:
        CheckpointError: no GGUF file that can be read, damaged, cut short or made to mislead; names
            the file and the place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._data: Array = np.memmap(path, mode="r")
        except (OSError, ValueError) as error:  # a ValueError for an empty file
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path}: cannot be read ({reason})", _AGAIN) from None
        header = _Header(path, self._data)
        tensors, entries = header.counts()
        self.entries: dict[str, Any] = dict(header.entries(entries))
        self._refuse_parts()
        self.tensors = {t.name: t for t in header.tensors(tensors, self._alignment())}

    def read(self, tensor: GgufTensor, out: torch.Tensor) -> None:
        """Copy the values of a tensor into another of its shape, which may have any type.

        Args:
            tensor: of this file.
            out: the other tensor.
        """
        # By rows, so that a large tensor never lies in memory twice.
        width = tensor.shape[-1]
        rows = prod(tensor.shape) // width
        flat = out.view(rows, width) if out.is_contiguous() else None
        if flat is None or not rows:
            out.copy_(self._values(tensor, 0, rows).view(tensor.shape))
            return
        step = max(1, _PIECE // width)
        for first in range(0, rows, step):
            last = min(rows, first + step)
            flat[first:last] = self._values(tensor, first, last)

    def _values(self, tensor: GgufTensor, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor as `[last - first, width]`."""
        width, kind = tensor.shape[-1], tensor.kind
        row = width // kind.numbers * kind.size
        raw = self._data[tensor.start + first * row : tensor.start + last * row]
        return blocks_to_tensor(raw, kind, (last - first, width))

    def _refuse_parts(self) -> None:
        count = self.entries.get("split.count", 1)
        if count not in (0, 1):
            raise CheckpointError(
                f"{self.path}: is one of {brief(count)} files that a model was split into",
                "Join them first, with llama.cpp: llama-gguf-split --merge FIRST.gguf WHOLE.gguf",
            )

    def _alignment(self) -> int:
        value = self.entries.get("general.alignment", _USUAL_ALIGNMENT)
        good = isinstance(value, int) and not isinstance(value, bool)
        if not good or not 0 < value <= _LARGEST_ALIGNMENT or value & (value - 1):
            raise CheckpointError(
                f"{self.path}: general.alignment must be a power of two, not {brief(repr(value))}",
                _AGAIN,
            )
        return int(value)


class _Header:
    """Reads a header from front to back, and never beyond the end of the file."""

    def __init__(self, path: Path, data: Array) -> None:
        self._path, self._data, self._place = path, memoryview(data.data), 0
        self._left = _MOST_ELEMENTS
        magic, version = bytes(self._data[:4]), bytes(self._data[4:8])
        if magic != GGUF_MAGIC:
            refuse_lfs_pointer(path)
            raise CheckpointError(f"{path}: not a GGUF file (it does not begin with GGUF)", _AGAIN)
        number = int.from_bytes(version, "little")
        if len(version) < 4 or number not in VERSIONS:
            swapped = int.from_bytes(version, "big") in VERSIONS
            what = "is written for big-endian machines" if swapped else f"has version {number}"
            raise CheckpointError(
                f"{path}: a GGUF file that {what}; versions 2 and 3, little-endian, are read",
                "Make it anew from its source with llama.cpp's convert_hf_to_gguf.py.",
            )
        self._place = 8

    def counts(self) -> tuple[int, int]:
        """The number of tensors and that of entries."""
        tensors, entries = self._number("<Q"), self._number("<Q")
        # Of each at least a length and some bytes follow.
        for what, count, least in (("tensors", tensors, 24), ("entries", entries, 13)):
            if count > min(_MOST_ITEMS, self._rest // least):
                raise self._damaged(f"the header promises {count:,} {what}")
        return tensors, entries

    def entries(self, count: int) -> Iterator[tuple[str, Any]]:
        """Read the entries."""
        known = set[str]()
        for _ in range(count):
            key = self._text(_LONGEST_NAME, "the name of an entry")
            if key in known:
                raise self._damaged(f"the entry '{in_line(brief(key))}' is there twice")
            known.add(key)
            yield key, self._value(self._number("<I"), f"the entry '{in_line(brief(key))}'")

    def tensors(self, count: int, alignment: int) -> list[GgufTensor]:
        """Read what is known of the tensors, and check that they lie apart and inside the file."""
        # Offsets count from the end of the header, which is known only after all of them.
        read = [self._tensor() for _ in range(count)]
        start = -(-self._place // alignment) * alignment
        tensors, end, names = [], start, set[str]()
        for name, shape, kind, offset in sorted(read, key=lambda item: item[3]):
            size, shown = prod(shape) // kind.numbers * kind.size, in_line(brief(name))
            if name in names:
                raise self._damaged(f"the tensor '{shown}' is there twice")
            if offset % alignment:
                raise self._damaged(f"'{shown}' begins at {offset}, not a multiple of {alignment}")
            if start + offset < end:
                raise self._damaged(f"'{shown}' overlaps the tensor before it")
            if start + offset + size > len(self._data):
                raise self._damaged(f"the file ends before '{shown}' does")
            names.add(name)
            end = start + offset + size
            tensors.append(GgufTensor(name, shape, kind, start + offset, size))
        places = {name: i for i, (name, *_) in enumerate(read)}
        return sorted(tensors, key=lambda tensor: places[tensor.name])

    def _tensor(self) -> tuple[str, tuple[int, ...], NumberFormat, int]:
        """Read one of them: its name, shape, format and offset."""
        name = self._text(_LONGEST_NAME, "the name of a tensor")
        shown, dimensions = in_line(brief(name)), self._number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"'{shown}' has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        number, offset = self._number("<I"), self._number("<Q")
        kind = FORMATS.get(number)
        if kind is None:
            known = ", ".join(item.name for item in FORMATS.values())
            raise CheckpointError(
                f"{self._path}: '{shown}' is stored as {OTHER_FORMATS.get(number, number)}, which "
                f"pretune does not read; it reads {known}",
                "Get the model in one of these, such as Q8_0, or with model.safetensors.",
            )
        # Products of any size are exact in Python, so that none passes by overflow.
        if 0 in shape or shape[-1] % kind.numbers:
            raise self._damaged(
                f"'{shown}' is {list(shape)}, which is no whole number of blocks of {kind.name}"
            )
        return name, shape, kind, offset

    def _value(self, kind: int, what: str) -> Any:
        """Read the value of an entry; `what` names it in errors."""
        if kind == _TEXT:
            return self._text(_LONGEST_TEXT, what)
        if kind in _NUMBERS:
            return self._array(kind, 1, what)[0]
        if kind != _LIST:
            raise self._damaged(f"{what} is of the unknown type {kind}")
        inner, count = self._number("<I"), self._number("<Q")
        if inner == _LIST:
            raise self._damaged(f"{what} is a list of lists")
        # All lists together, so that many of them do not fill the memory either.
        least = np.dtype(_NUMBERS.get(inner, "<u8")).itemsize
        if count > min(self._left, self._rest // least):
            raise self._damaged(f"{what} promises {count:,} elements")
        self._left -= count
        if inner in _NUMBERS:
            return self._array(inner, count, what)
        return [self._value(inner, what) for _ in range(count)]

    def _array(self, kind: int, count: int, what: str) -> list[Any]:
        dtype = np.dtype(_NUMBERS[kind])
        raw = self._take(count * dtype.itemsize, what)
        if kind == 7 and any(byte > 1 for byte in raw):
            raise self._damaged(f"{what} is neither true nor false")
        values: list[Any] = np.frombuffer(raw, dtype=dtype).tolist()
        return values

    def _text(self, longest: int, what: str) -> str:
        length = self._number("<Q")
        if length > longest:
            raise self._damaged(f"{what} has {length:,} bytes")
        try:
            return bytes(self._take(length, what)).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"{what} is not UTF-8") from None

    def _number(self, layout: str) -> int:
        size = struct.calcsize(layout)
        (value,) = struct.unpack(layout, self._take(size, "the header"))
        return int(value)

    def _take(self, size: int, what: str) -> memoryview:
        if size > self._rest:
            raise self._damaged(f"the file ends within {what}")
        self._place += size
        return self._data[self._place - size : self._place]

    @property
    def _rest(self) -> int:
        return len(self._data) - self._place

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: damaged or not a GGUF file ({what})", _AGAIN)
