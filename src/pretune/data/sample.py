"""Which examples make up which batch: a function of the seed and a place in the data alone.

So resuming is a seek: the place is two numbers, and getting there costs the same from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Cursor(NamedTuple):
    """A place in the data; places compare by which comes first.

    Attributes:
        epoch: 0-based.
        offset: examples of that epoch that come before.
    """

    epoch: int = 0
    offset: int = 0


def epoch_order(count: int, seed: int, epoch: int) -> Array:
    """`[count]` int64: a permutation that depends on nothing but its arguments."""
    # Philox is counter-based: the key alone decides the stream, with no state to carry along.
    # An explicit dtype: of a list with a number over 2^63 (a negative seed) numpy makes floats.
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.permutation(count)


@dataclass(frozen=True)
class _Epoch:
    number: int
    order: Array
    ends: Array  # tokens up to and with each example, in this order


class DataOrder:
    """The examples of each epoch in an order of its own, to be cut into batches.

    Args:
        lengths: `[N]` tokens of each example, N > 0.
        seed: of the run.
        in_tokens: whether batches are sized in tokens rather than in examples.
        shuffle: False keeps the order of the data in all epochs.

    Raises:
        ValueError: there are no examples.
    """

    def __init__(
        self, lengths: Array, *, seed: int, in_tokens: bool = False, shuffle: bool = True
    ) -> None:
        if len(lengths) == 0:
            raise ValueError("there are no examples")
        self._lengths, self._seed = lengths, seed
        self._in_tokens, self._shuffle = in_tokens, shuffle
        self._current: _Epoch | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def take(self, cursor: Cursor, size: int) -> tuple[Array, Cursor]:
        """The batch that begins at a place, and the place where the next one begins.

        No batch reaches beyond its epoch, so the last one of an epoch may be smaller.

        Args:
            cursor: with an offset below N.
            size: examples; or tokens at most, and then an example longer than that makes a batch
                of its own.

        Raises:
            ValueError: `size` is not positive.
        """
        after = self._after(cursor, size)
        end = after.offset if after.epoch == cursor.epoch else len(self)
        return self._epoch(cursor.epoch).order[cursor.offset : end], after

    def _after(self, cursor: Cursor, size: int) -> Cursor:
        if size < 1:
            raise ValueError("a batch must have a positive size")
        end = cursor.offset + size
        if self._in_tokens:
            ends = self._epoch(cursor.epoch).ends
            before = ends[cursor.offset - 1] if cursor.offset else 0
            end = int(np.searchsorted(ends, before + size, side="right"))
            end = max(cursor.offset + 1, end)
        return Cursor(cursor.epoch, end) if end < len(self) else Cursor(cursor.epoch + 1, 0)

    def updates(self, epochs: float, size: Callable[[int], int]) -> int:
        """How many batches `epochs` passes over the data make.

        Args:
            epochs: with a fraction of the last one.
            size: of the batch of each update, counted from 0.
        """
        whole = math.floor(epochs)
        done, at = 0, Cursor()
        while at.epoch < whole:
            at = self._after(at, size(done))
            done += 1
        if epochs == whole:
            return done
        before = done
        while at.epoch == whole:
            at = self._after(at, size(done))
            done += 1
        return before + math.ceil((epochs - whole) * (done - before))

    def _epoch(self, number: int) -> _Epoch:
        if self._current is None or self._current.number != number:
            count = len(self)
            order = epoch_order(count, self._seed, number) if self._shuffle else np.arange(count)
            self._current = _Epoch(number, order, np.cumsum(self._lengths[order]))
        return self._current


def batches_by_length(lengths: Array, batch_tokens: int) -> list[Array]:
    """Batches for evaluation and prediction: longest first, so that memory is asked for once.

    Raises:
        ValueError: `batch_tokens` is not positive.
    """
    if batch_tokens < 1:
        raise ValueError("batch_tokens must be positive")
    if len(lengths) == 0:
        return []
    longest_first = np.argsort(-lengths, kind="stable")
    order = DataOrder(lengths[longest_first], seed=0, in_tokens=True, shuffle=False)
    batches, at = [], Cursor()
    while at.epoch == 0:
        which, at = order.take(at, batch_tokens)
        batches.append(longest_first[which])
    return batches
