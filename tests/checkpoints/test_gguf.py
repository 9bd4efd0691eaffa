"""GGUF files: entries and tensors equal the `gguf` package's, and headers that lie are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pretune.checkpoints.gguf import GgufFile
from pretune.checkpoints.gguf_blocks import FORMATS, OTHER_FORMATS, blocks_to_tensor
from pretune.errors import CheckpointError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def written(
    path: Path,
    entries: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    counts: tuple[int, int] | None = None,
    version: int = 3,
) -> Path:
    header = b"GGUF" + struct.pack("<I", version)
    header += struct.pack("<QQ", *(counts or (len(tensors), len(entries))))
    header += b"".join(entries) + b"".join(tensors)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)
    return path


@pytest.mark.parametrize("number", FORMATS)
def test_numbers_equal_the_gguf_packages(number: int) -> None:
    kind = FORMATS[number]
    raw = np.random.default_rng(number).integers(0, 256, 6 * kind.size, dtype=np.uint8)
    blocks = raw.view(kind.layout)
    # Any bits are whole numbers, but scales and plain numbers have to be finite.
    for part in blocks.dtype.names or ():
        if blocks[part].dtype.kind == "f":
            blocks[part] = np.linspace(-3, 4, 6)
    if kind.floats is None and kind.name != "BF16":
        blocks[:] = np.linspace(-3, 4, 6)
    ours = blocks_to_tensor(raw, kind, (2, 3 * kind.numbers))
    if kind.name == "F64":
        np.testing.assert_array_equal(ours.numpy().ravel(), blocks)
        return
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType(number))
    np.testing.assert_array_equal(ours.float().numpy().ravel(), theirs.ravel())


def test_every_format_has_a_name() -> None:
    theirs = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    ours = {number: kind.name for number, kind in FORMATS.items()} | OTHER_FORMATS
    assert ours.items() <= theirs.items()
    sizes = {n: (kind.numbers, kind.size) for n, kind in FORMATS.items()}
    assert sizes == {n: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(n)] for n in FORMATS}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of the `gguf` package with every kind of entry, and tensors of three formats."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60_000)
    writer.add_int16("a.i16", -300)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -5)
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**40))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "好\n")
    writer.add_array("a.numbers", [1.5, 2.5])
    writer.add_array("a.texts", ["x", "", "é"])
    values = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    writer.add_tensor("plain", values)
    writer.add_tensor("half", values.astype(np.float16))
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_entries_and_tensors(file: Path) -> None:
    ours, theirs = GgufFile(file), gguf.GGUFReader(file)
    expected = {n: f.contents() for n, f in theirs.fields.items() if not n.startswith("GGUF.")}
    assert ours.entries == expected
    assert [*ours.tensors] == ["plain", "half", "packed"] == [t.name for t in theirs.tensors]
    for other in theirs.tensors:
        known = ours.tensors[other.name]
        assert (known.start, known.size) == (other.data_offset, other.n_bytes)
        out = torch.empty(3, 64)
        ours.read(known, out)
        values = gguf.dequantize(other.data, other.tensor_type)
        np.testing.assert_array_equal(out.numpy(), values)
        across = torch.empty(64, 3)  # not contiguous, as GPT-2's matrices are read
        ours.read(known, across.t())
        assert torch.equal(across.t(), out)


def test_large_tensors_are_read_in_pieces(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = torch.empty(3, 64), torch.empty(3, 64)
    ours = GgufFile(file)
    ours.read(ours.tensors["packed"], whole)
    monkeypatch.setattr("pretune.checkpoints.gguf._PIECE", 64)
    ours.read(ours.tensors["packed"], out)
    assert torch.equal(out, whole)


ONE = tensor("a", (8,))
DATA = b"\0" * 32
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "more tensors": ({"counts": (2**60, 0)}, "promises"),
    "more entries": ({"counts": (0, 2**60)}, "promises"),
    "an endless name": ({"entries": (struct.pack("<Q", 2**63) + b"x" * 40,)}, "has 9,223"),
    "an endless text": ({"entries": (entry("a", 8, struct.pack("<Q", 2**40)),)}, "'a' has 1,099"),
    "a text beyond the end": ({"entries": (entry("a", 8, struct.pack("<Q", 99)),)}, "ends within"),
    "no text": ({"entries": (entry("a", 8, text("x").replace(b"x", b"\xff")),)}, "not UTF-8"),
    "a list of lists": ({"entries": (entry("a", 9, struct.pack("<IQ", 9, 1)),)}, "list of lists"),
    "an endless list": ({"entries": (entry("a", 9, struct.pack("<IQ", 4, 2**61)),)}, "promises"),
    "an endless list of texts": (
        {"entries": (entry("a", 9, struct.pack("<IQ", 8, 2**40)),)},
        "promises",
    ),
    "an unknown type": ({"entries": (entry("a", 77, b"\0" * 8),)}, "unknown type 77"),
    "a strange truth": ({"entries": (entry("a", 7, b"\x02"),)}, "neither true nor false"),
    "an entry twice": ({"entries": (entry("a", 0, b"\1"), entry("a", 0, b"\2"))}, "there twice"),
    "no alignment": (
        {"entries": (entry("general.alignment", 4, struct.pack("<I", 0)),)},
        "power of two",
    ),
    "an odd alignment": (
        {"entries": (entry("general.alignment", 4, struct.pack("<I", 48)),)},
        "power of two, not 48",
    ),
    "a part": ({"entries": (entry("split.count", 2, b"\3\0"),)}, "one of 3 files"),
    "a tensor twice": (
        {"tensors": (ONE, tensor("a", (8,), offset=32)), "data": DATA * 2},
        "'a' is there twice",
    ),
    "tensors that overlap": (
        {"tensors": (ONE, tensor("b", (8,))), "data": DATA * 2},
        "overlaps",
    ),
    "a tensor beyond the end": ({"tensors": (ONE,), "data": DATA[:-1]}, "ends before 'a'"),
    "an offset that overflows": (
        {"tensors": (tensor("a", (8,), offset=2**64 - 32),), "data": DATA},
        "ends before 'a'",
    ),
    "an offset between": (
        {"tensors": (tensor("a", (8,), offset=8),), "data": DATA * 2},
        "not a multiple of 32",
    ),
    "a shape that overflows": (
        {"tensors": (tensor("a", (2**32, 2**32)),), "data": DATA},
        "ends before 'a'",
    ),
    "nothing in it": ({"tensors": (tensor("a", (0, 8)),), "data": DATA}, "no whole number"),
    "half a block": ({"tensors": (tensor("a", (8,), 8),), "data": DATA * 2}, "blocks of Q8_0"),
    "nine dimensions": ({"tensors": (tensor("a", (1,) * 9),), "data": DATA}, "9 dimensions"),
    "no dimensions": ({"tensors": (tensor("a", ()),), "data": DATA}, "0 dimensions"),
    "another format": (
        {"tensors": (tensor("a", (256,), 10),), "data": DATA * 9},
        "stored as Q2_K, which pretune does not read; it reads F32",
    ),
    "an unknown format": ({"tensors": (tensor("a", (8,), 999),), "data": DATA}, "stored as 999"),
    "version 1": ({"version": 1}, "has version 1"),
    "big-endian": ({"version": 3 << 24}, "big-endian"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    options, why = HOSTILE[case]
    path = written(tmp_path / "evil.gguf", **options)
    with pytest.raises(CheckpointError, match=why) as caught:
        GgufFile(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cannot be read"),
        (b"GGU", "does not begin with GGUF"),
        (b"GGUF\3\0", "version 3"),
        (b"GGUF\3\0\0\0" + b"\0" * 9, "ends within the header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        GgufFile(tmp_path / "model.gguf")
    assert why in str(caught.value)


def test_a_good_file_of_the_same_parts(tmp_path: Path) -> None:
    """What the hostile ones are made of is fine by itself."""
    path = written(tmp_path / "good.gguf", (entry("a", 0, b"\1"),), (ONE,), DATA)
    assert GgufFile(path).entries == {"a": 1}
    assert GgufFile(written(path, version=2)).tensors == {}


@pytest.mark.parametrize("change", [lambda byte: byte ^ 0x80, lambda byte: 255])
def test_any_flipped_byte_gives_a_file_or_an_error(
    file: Path, tmp_path: Path, change: Callable[[int], int]
) -> None:
    raw, size = bytearray(file.read_bytes()), GgufFile(file).tensors["plain"].start
    path = tmp_path / "flipped.gguf"
    for place in range(4, size, 7):
        flipped = bytearray(raw)
        flipped[place] = change(flipped[place])
        path.write_bytes(flipped)
        try:
            GgufFile(path)
        except CheckpointError as error:
            assert str(path) in error.message  # noqa: PT017 - either is fine


def places(raw: bytes) -> list[int]:
    """Where a part of a header ends: each of these is a place to cut a file off."""
    ends, take = [4, 8, 16, 24], struct.Struct("<Q").unpack_from
    tensors, entries = take(raw, 8)[0], take(raw, 16)[0]
    sizes = dict(enumerate((1, 1, 2, 2, 4, 4, 4, 1))) | {10: 8, 11: 8, 12: 8}

    def step(by: int) -> int:
        ends.append(ends[-1] + by)
        return ends[-2]

    def value(kind: int) -> None:
        if kind == 8:
            step(take(raw, step(8))[0])
        elif kind == 9:
            inner, count = struct.unpack_from("<IQ", raw, step(12))
            for _ in range(count):
                value(inner)
        else:
            step(sizes[kind])

    for _ in range(entries):
        value(8)
        value(struct.unpack_from("<I", raw, step(4))[0])
    for _ in range(tensors):
        value(8)
        step(8 * struct.unpack_from("<I", raw, step(4))[0])
        step(12)
    return ends


def test_a_file_that_is_cut_off_anywhere_in_its_header_is_refused(
    file: Path, tmp_path: Path
) -> None:
    raw = file.read_bytes()
    known = GgufFile(file)
    # The last place is that of the tensors, but for what fills up to a multiple of 64.
    ends = places(raw)
    assert 0 <= known.tensors["plain"].start - ends[-1] < 64
    path = tmp_path / "cut.gguf"
    last = max(tensor.start + tensor.size for tensor in known.tensors.values())
    for end in [*ends, *(t.start + t.size - 1 for t in known.tensors.values()), last - 64]:
        for cut in (end - 1, end):
            path.write_bytes(raw[:cut])
            with pytest.raises(CheckpointError, match=r"cut\.gguf: "):
                GgufFile(path)
    path.write_bytes(raw[:last])
    assert [*GgufFile(path).tensors] == [*known.tensors]
