"""The format of TensorFlow's checkpoints: checksums, and files that nobody should have written."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.checkpoints.tensorflow.google_bert import TensorFlowCheckpoint
from pretune.checkpoints.tensorflow.tensor_bundle import crc32c
from pretune.errors import CheckpointError
from tests.checkpoints.bundles import (
    FIXTURES,
    HEADER,
    INDEX,
    VALUES,
    block,
    entry,
    field,
    slow_crc,
    table,
    varint,
    write,
)


def checkpoint(folder: Path) -> TensorFlowCheckpoint:
    return TensorFlowCheckpoint(folder / "bert_model.ckpt")


def read_all(folder: Path) -> None:
    weights = checkpoint(folder)
    for name in weights.names:
        weights.read(name)


class TestCrc:
    @pytest.mark.parametrize(
        ("data", "crc"),
        [  # RFC 3720, B.4, and the usual check value
            (b"", 0),
            (bytes(32), 0x8A9136AA),
            (b"\xff" * 32, 0x62A8AB43),
            (bytes(range(32)), 0x46DD794E),
            (bytes(range(31, -1, -1)), 0x113FDB5C),
            (b"123456789", 0xE3069283),
        ],
    )
    def test_known(self, data, crc):
        assert crc32c(data) == crc

    @given(st.integers(0, 5000), st.integers(0))
    def test_is_that_of_the_definition(self, size, seed):
        data = random.Random(seed).randbytes(size)
        assert crc32c(data) == slow_crc(data)

    @pytest.mark.parametrize("size", [20_000, 99_991, 2**17, 2**18 + 1, 399_999])
    def test_of_what_is_folded(self, size):
        data = random.Random(size).randbytes(size)
        assert crc32c(np.frombuffer(data, np.uint8)) == crc32c(data) == slow_crc(data)

    @given(st.integers(0, 199_999), st.integers(0, 7))
    def test_every_bit_counts(self, at, bit):
        data = bytearray(200_000)
        zero = crc32c(data)
        data[at] ^= 1 << bit
        assert crc32c(data) != zero


LONG = varint(0) + varint(5000) + varint(0) + b"k" * 5000
AGAIN = [varint(5000) + varint(1) + varint(0) + bytes([i]) for i in range(256)]


def bounded(folder: Path) -> None:
    """Reads everything, or refuses; soon in any case."""
    start = time.perf_counter()
    try:
        read_all(folder)
    except CheckpointError as error:
        assert str(folder) in error.message  # noqa: PT017 - both outcomes are right
    assert time.perf_counter() - start < 5


class TestHostile:
    @pytest.mark.parametrize(
        ("other", "reason"),
        [
            ({"offset": 1}, r"data-.*: cut off: 'a' ends after the file's end"),
            ({"offset": 2**62}, "ends after the file's end"),
            ({"offset": -1}, "not a whole number"),
            ({"size": 2**62}, "ends after the file's end"),
            ({"size": 23}, r"'a' of shape \[2, 3\] has 23 bytes"),
            ({"size": -24}, "not a whole number"),
            ({"shard": 1}, "'a' is in data file 2 of 1"),
            ({"shard": 2**40}, "is in data file"),
            ({"dtype": b"x"}, "not a whole number"),
            ({"dtype": 9}, "'a' holds int64, not floats"),
            ({"dtype": 101}, "'a' holds TensorFlow's type 101, not floats"),
            ({"shape": 7}, "a number where a message is expected"),
            ({"shape": field(2, field(1, 2**62))}, "absurd size"),
            ({"shape": field(2, field(1, 2**40))}, "has 24 bytes"),
            ({"shape": field(2, field(1, -1))}, "not a whole number"),
            ({"shape": field(2, field(1, 0)) + field(2, field(1, 2**62)), "size": 0}, "absurd"),
            ({"shape": field(2, b"") * 9}, "more than 8 axes"),
            ({"shape": b"\x0b"}, "unknown kind 3"),
            ({"shape": b"\x12\x7f"}, "a field is cut off"),
            ({"shape": b"\x12"}, "a number is cut off"),
            ({"shape": b"\x08" + b"\xff" * 10 + b"\x01"}, "more than 64 bits"),
        ],
    )
    def test_entry(self, tmp_path, other, reason):
        write(tmp_path, (b"a", entry(VALUES, **other)))
        with pytest.raises(CheckpointError, match=reason):
            read_all(tmp_path)

    def test_partitioned_variable(self, tmp_path):
        write(tmp_path, (b"\0a", entry(VALUES)), (b"a", entry(VALUES) + field(7, b"")))
        with pytest.raises(CheckpointError, match=rf"{INDEX}: 'a' is in several pieces"):
            read_all(tmp_path)

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ((b"x", b""), "has no header"),
            ((b"", field(1, 1) + field(2, 1)), "big-endian"),
            ((b"", field(1, 1) + field(3, field(2, 2))), "of a newer format"),
            ((b"", field(1, 2**31)), r"names bert_model\.ckpt\.data-00000-of-2147483648"),
            ((b"", b""), "in data file 1 of 0"),
        ],
    )
    def test_header(self, tmp_path, header, reason):
        write(tmp_path, (b"y", entry(VALUES)), header=header)
        with pytest.raises(CheckpointError, match=reason):
            checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (table([block([HEADER])], kind=1), r"is compressed \(snappy\)"),
            (table([block([HEADER])], kind=9), r"is compressed \(an unknown way\)"),
            (table([block([HEADER, (b"\xff", b"")])]), "utf-8"),
            (table([block([HEADER, (b"b", b""), (b"a", b"")])]), "keys are not in order"),
            (table([block([HEADER]), block([HEADER])]), "keys are not in order"),
            (table([b"\0" * 3]), "outside the file"),
            (table([b"\xff" * 4]), "more restart points than bytes"),
            (table([b"\x05\x00\x00" + bytes(4)]), "outside its block"),
            (table([b"\x00\x7f\x00" + bytes(4)]), "outside its block"),
            (table([], block([(b"", varint(2**60) + varint(8))])), "outside the file"),
            # A block that is named again and again; a long key that others have the most of.
            (table([block([])], block([(b"", b"\x00\x08")] * 999)), "blocks are not in order"),
            (table([LONG + b"".join(AGAIN) + bytes(4)]), "outside its block"),
        ],
    )
    def test_table(self, tmp_path, raw, reason):
        (tmp_path / INDEX).write_bytes(raw)
        with pytest.raises(CheckpointError, match=rf"{INDEX}: damaged: .*{reason}"):
            checkpoint(tmp_path)

    @given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=6))
    def test_edits_of_the_index(self, tmp_path_factory, edits):
        folder = tmp_path_factory.mktemp("edits")
        shutil.copytree(FIXTURES / "tf1", folder, dirs_exist_ok=True)
        raw = bytearray((folder / INDEX).read_bytes())
        for at, value in edits:
            raw[at % len(raw)] = value
        (folder / INDEX).write_bytes(raw)
        bounded(folder)

    @given(st.data())
    def test_edits_under_a_right_checksum(self, tmp_path_factory, data):
        folder = tmp_path_factory.mktemp("edits")
        items = [HEADER, (b"bert/pooler/dense/kernel", entry(VALUES)), (b"c", entry(VALUES))]
        content = bytearray(block(items))
        index = bytearray(block([(b"c", varint(0) + varint(len(content)))]))
        for target in (content, content, content, index)[: data.draw(st.integers(1, 4))]:
            at = data.draw(st.integers(0, len(target) - 1))
            target[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        write(folder)
        (folder / INDEX).write_bytes(table([bytes(content)], bytes(index)))
        bounded(folder)

    @given(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=40)), max_size=5))
    def test_any_entries(self, tmp_path_factory, items):
        folder = tmp_path_factory.mktemp("any")
        bounded(write(folder, *sorted(dict(items).items())))
