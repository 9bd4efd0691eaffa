"""The type of arrays, and index arithmetic on sequences that lie end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def ranges(starts: Array, lengths: Array) -> Array:
    """`[start, start + 1, ..., start + length - 1]` for each pair, end to end, int64."""
    before = np.cumsum(lengths) - lengths
    indices: Array = np.repeat(starts - before, lengths)
    indices += np.arange(len(indices), dtype=np.int64)
    return indices
