"""The number formats of GGUF: blocks of a few bits with their scales, read as floats.

Each format is a block of bytes that stands for 32 or 256 numbers (ggml-common.h of llama.cpp). The
values are those that llama.cpp itself computes with: scale times integer, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pretune.data.arrays import Array

#: Numbers in a block of the formats with two levels of scales.
_LONG = 256


@dataclass(frozen=True)
class NumberFormat:
    """How numbers are stored.

    Attributes:
        name: llama.cpp's name of it.
        numbers: how many numbers a block has.
        layout: the parts of a block, as numpy describes them.
        floats: `[N]` blocks to `[N, numbers]` float32; None: the numbers are stored as they are.
        dtype: the type of tensors that hold the values without loss.
    """

    name: str
    numbers: int
    layout: np.dtype[Any]
    floats: Callable[[Array], Array] | None = None
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return self.layout.itemsize


def _nibbles(packed: Array) -> Array:
    """`[..., n]` bytes to `[..., 2 n]`: the lower halves of all of them, then the upper halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _scale(values: Array) -> Array:
    """`[N]` half-precision scales as `[N, 1]` float32."""
    return values.astype(np.float32)[:, None]


def _bits(packed: Array) -> Array:
    """`[N]` numbers of 32 bits to `[N, 32]`: the lowest bit first."""
    return (packed[:, None] >> np.arange(32, dtype=np.uint32)).astype(np.uint8) & 1


def _q8_0(blocks: Array) -> Array:
    values: Array = _scale(blocks["d"]) * blocks["q"].astype(np.float32)
    return values


def _q4_0(blocks: Array) -> Array:
    values: Array = _scale(blocks["d"]) * (_nibbles(blocks["q"]).astype(np.float32) - 8)
    return values


def _q4_1(blocks: Array) -> Array:
    values: Array = _scale(blocks["d"]) * _nibbles(blocks["q"]).astype(np.float32) + _scale(
        blocks["m"]
    )
    return values


def _five_bits(blocks: Array) -> Array:
    values: Array = (_nibbles(blocks["q"]) | (_bits(blocks["high"]) << 4)).astype(np.float32)
    return values


def _q5_0(blocks: Array) -> Array:
    values: Array = _scale(blocks["d"]) * (_five_bits(blocks) - 16)
    return values


def _q5_1(blocks: Array) -> Array:
    values: Array = _scale(blocks["d"]) * _five_bits(blocks) + _scale(blocks["m"])
    return values


def _scales_and_minima(blocks: Array) -> tuple[Array, Array]:
    """`[N, 8, 1]` scales and minima of the eight groups of a long block.

    Both are whole numbers of 6 bits, packed in 12 bytes (`get_scale_min_k4` of ggml-quants.c),
    times a half-precision number of the block.
    """
    low, high, mixed = (blocks["scales"][:, 4 * i : 4 * i + 4] for i in range(3))
    scales = np.concatenate([low & 63, (mixed & 15) | (low >> 6 << 4)], axis=-1)
    minima = np.concatenate([high & 63, (mixed >> 4) | (high >> 6 << 4)], axis=-1)
    d, m = _scale(blocks["d"]), _scale(blocks["m"])
    return (d * scales.astype(np.float32))[..., None], (m * minima.astype(np.float32))[..., None]


def _q4_k(blocks: Array) -> Array:
    # 32 bytes hold two groups: one in their lower halves, one in their upper halves.
    numbers = _nibbles(blocks["q"].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    scales, minima = _scales_and_minima(blocks)
    values: Array = (scales * numbers.astype(np.float32) - minima).reshape(-1, _LONG)
    return values


def _q5_k(blocks: Array) -> Array:
    numbers = _nibbles(blocks["q"].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    # The fifth bits of a group are one bit of each of 32 bytes.
    fifth = blocks["high"][:, None] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    scales, minima = _scales_and_minima(blocks)
    values: Array = (scales * (numbers | (fifth << 4)).astype(np.float32) - minima).reshape(
        -1, _LONG
    )
    return values


def _q6_k(blocks: Array) -> Array:
    # Each half of a block: 64 bytes with four bits of 128 numbers, 32 bytes with two more of each.
    low = _nibbles(blocks["q"].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high = blocks["high"].reshape(-1, 2, 1, 32) >> shifts & 3
    numbers = (low | (high << 4)).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = _scale(blocks["d"]) * blocks["scales"].astype(np.float32)
    values: Array = (scales[..., None] * numbers).reshape(-1, _LONG)
    return values


def _format(
    name: str, numbers: int, floats: Callable[[Array], Array], *parts: tuple[Any, ...]
) -> NumberFormat:
    return NumberFormat(name, numbers, np.dtype([*parts]), floats)


def _plain(name: str, kind: str, dtype: torch.dtype) -> NumberFormat:
    return NumberFormat(name, 1, np.dtype(kind), None, dtype)


_D, _M, _SCALES = ("d", "<f2"), ("m", "<f2"), ("scales", "u1", 12)
#: The formats that are read, by their number in the file.
FORMATS = {
    0: _plain("F32", "<f4", torch.float32),
    1: _plain("F16", "<f2", torch.float16),
    2: _format("Q4_0", 32, _q4_0, _D, ("q", "u1", 16)),
    3: _format("Q4_1", 32, _q4_1, _D, _M, ("q", "u1", 16)),
    6: _format("Q5_0", 32, _q5_0, _D, ("high", "<u4"), ("q", "u1", 16)),
    7: _format("Q5_1", 32, _q5_1, _D, _M, ("high", "<u4"), ("q", "u1", 16)),
    8: _format("Q8_0", 32, _q8_0, _D, ("q", "i1", 32)),
    12: _format("Q4_K", _LONG, _q4_k, _D, _M, _SCALES, ("q", "u1", 128)),
    13: _format("Q5_K", _LONG, _q5_k, _D, _M, _SCALES, ("high", "u1", 32), ("q", "u1", 128)),
    14: _format(
        "Q6_K", _LONG, _q6_k, ("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D
    ),
    28: _plain("F64", "<f8", torch.float64),
    30: _plain("BF16", "<u2", torch.bfloat16),
}
#: The names of the other formats, for errors.
OTHER_FORMATS = {
    **dict(zip((9, 10, 11, 15), ("Q8_1", "Q2_K", "Q3_K", "Q8_K"), strict=True)),
    **dict(enumerate(("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL"), start=16)),
    **dict(enumerate(("IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64"), start=21)),
    29: "IQ1_M",
    **dict(zip((34, 35, 39, 40, 41), ("TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0"), strict=True)),
}


def blocks_to_tensor(raw: Array, kind: NumberFormat, shape: Sequence[int]) -> torch.Tensor:
    """Convert stored bytes to a tensor of `kind.dtype`.

    Args:
        raw: `[bytes]` uint8, whole blocks.
        kind: their format.
        shape: of the tensor, which has as many numbers.
    """
    blocks = raw.view(kind.layout)
    if kind.floats is not None:
        return torch.from_numpy(kind.floats(blocks)).view(*shape)
    # A copy, as the file is mapped for reading alone. numpy has no BF16.
    known = np.int16 if kind.dtype is torch.bfloat16 else blocks.dtype
    return torch.from_numpy(blocks.view(known).copy()).view(kind.dtype).view(*shape)
