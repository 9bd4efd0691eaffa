"""Which examples make up which batch: functions of (seed, epoch) alone: resuming is a seek."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def epoch_order(count: int, seed: int, epoch: int) -> Array:
    """`[count]` int64: a permutation that depends on nothing but its arguments."""
    # Philox is counter-based: the key alone decides the stream, with no state to carry along.
    # An explicit dtype: of a list with a number over 2^63 (a negative seed) numpy makes floats.
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.permutation(count)


def epoch_batches(
    lengths: Array,
    *,
    seed: int,
    epoch: int,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    shuffle: bool = True,
) -> list[Array]:
    """All batches of one epoch, in order; batch `i` of epoch `e` is `epoch_batches(...)[i]`.

    Args:
        lengths: `[N]` tokens of each feature.
        seed: of the run.
        epoch: 0-based.
        batch_size: features a batch (the last one of an epoch may have fewer), or
        batch_tokens: the most tokens a batch may hold; a longer feature gets a batch of its own.
        shuffle: False keeps the order of the data.

    Raises:
        ValueError: not exactly one of the two sizes is given, or it is not positive.
    """
    order = epoch_order(len(lengths), seed, epoch) if shuffle else np.arange(len(lengths))
    if (batch_size is None) == (batch_tokens is None):
        raise ValueError("give either batch_size or batch_tokens")
    if batch_size is not None:
        if batch_size < 1:
            raise ValueError("batch_size must be positive")
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    assert batch_tokens is not None  # noqa: S101 - for the type checker
    return _cut_by_tokens(order, lengths, batch_tokens)


def batches_by_length(lengths: Array, batch_tokens: int) -> list[Array]:
    """Batches for evaluation and prediction: longest first, so that memory is asked for once."""
    return _cut_by_tokens(np.argsort(-lengths, kind="stable"), lengths, batch_tokens)


def _cut_by_tokens(order: Array, lengths: Array, batch_tokens: int) -> list[Array]:
    if batch_tokens < 1:
        raise ValueError("batch_tokens must be positive")
    batches: list[Array] = []
    start, used = 0, 0
    for i, length in enumerate(lengths[order].tolist()):
        if i > start and used + length > batch_tokens:
            batches.append(order[start:i])
            start, used = i, 0
        used += length
    if start < len(order):
        batches.append(order[start:])
    return batches
