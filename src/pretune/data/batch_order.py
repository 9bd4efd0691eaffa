"""Which examples make up which batch: a function of the seed and a place in the data alone.

Resuming is therefore a seek: a place is two numbers, and costs the same to reach from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pretune.data.arrays import Array, ranges


class Cursor(NamedTuple):
    """A place in the data; places compare by their order in training."""

    epoch: int = 0  # 0-based
    offset: int = 0  # number of examples of that epoch before this place


def epoch_order(count: int, seed: int, epoch: int) -> Array:
    """`[count]` int64: a permutation that depends only on the arguments."""
    # Philox is counter-based: the key alone decides the stream, with no state to carry along.
    # The dtype is given because numpy turns a list with a number over 2^63 (a negative seed) into
    # floats.
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.permutation(count)


@dataclass(frozen=True)
class _Epoch:
    number: int
    order: Array
    ends: Array  # tokens up to and with each example, in this order


class DataOrder:
    """The examples in a new order for each epoch, to be cut into batches.

    Args:
        lengths: `[N]` tokens of each example, N > 0 (else ValueError).
        seed: of the run.
        in_tokens: whether the size of a batch is in tokens rather than in examples.
        shuffle: False keeps the order of the data in all epochs.
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
        """The batch that begins at a place, and the place where the next batch begins.

        No batch goes beyond its epoch, so the last batch of an epoch may be smaller. `size` is the
        number of examples, or the most tokens, where a longer example is a batch of its own.
        """
        after = self._after(cursor, size)
        end = after.offset if after.epoch == cursor.epoch else len(self)
        return self._epoch(cursor.epoch).order[cursor.offset : end], after

    def _after(self, cursor: Cursor, size: int) -> Cursor:
        if size < 1:
            raise ValueError("a batch must have a positive size")
        end = cursor.offset + size
        if self._in_tokens:
            # As many examples as fit, but at least one.
            ends = self._epoch(cursor.epoch).ends
            before = ends[cursor.offset - 1] if cursor.offset else 0
            end = int(np.searchsorted(ends, before + size, side="right"))
            end = max(cursor.offset + 1, end)
        return Cursor(cursor.epoch, end) if end < len(self) else Cursor(cursor.epoch + 1, 0)

    def updates(self, epochs: float, size: Callable[[int], int], ramp: int = 0) -> int:
        """Number of updates in `epochs` passes over the data; a fraction is a part of the last one.

        `size` gives the size of the batch of an update (0-based), the same from update `ramp` on.
        """
        # Whole epochs, update by update until the size no longer changes.
        whole = math.floor(epochs)
        done, at = 0, Cursor()
        while at.epoch < whole:
            if done >= ramp and at.offset == 0 and not self._in_tokens:
                each = self._in_epoch(at.epoch, done, size)  # the same in all later epochs
                done, at = done + each * (whole - at.epoch), Cursor(whole)
                break
            at = self._after(at, size(done))
            done += 1
        # Then the fraction of one more epoch.
        if epochs == whole:
            return done
        return done + math.ceil((epochs - whole) * self._in_epoch(whole, done, size))

    def _in_epoch(self, epoch: int, done: int, size: Callable[[int], int]) -> int:
        at, count = Cursor(epoch), 0
        while at.epoch == epoch:
            at = self._after(at, size(done + count))
            count += 1
        return count

    def _epoch(self, number: int) -> _Epoch:
        if self._current is None or self._current.number != number:
            count = len(self)
            order = self._arranged(number) if self._shuffle else np.arange(count)
            self._current = _Epoch(number, order, np.cumsum(self._lengths[order]))
        return self._current

    def _arranged(self, epoch: int) -> Array:
        return epoch_order(len(self), self._seed, epoch)


class StreamOrder(DataOrder):
    """The order for models whose state is carried from batch to batch.

    In each epoch the texts are laid end to end in a new order, and cut into `streams` of nearly
    equal numbers of examples. A batch has the next example of every stream, always in their order;
    the last batch of an epoch lacks the streams that have ended. `follows` (`[N]` bool) tells
    whether an example goes on where the example before it ended.
    """

    def __init__(self, lengths: Array, follows: Array, *, seed: int, streams: int) -> None:
        super().__init__(lengths, seed=seed)
        if streams < 1:
            raise ValueError("there must be a stream")
        self._starts, self._sizes = _texts(follows)
        self.streams = min(streams, len(lengths))

    def _after(self, cursor: Cursor, size: int) -> Cursor:
        # Whatever the size: the state of each stream goes on in the next batch.
        return super()._after(cursor, self.streams)

    def _arranged(self, epoch: int) -> Array:
        texts = epoch_order(len(self._starts), self._seed, epoch)
        line = ranges(self._starts[texts], self._sizes[texts])
        # The first `longer` streams have one example more than the others.
        short, longer = divmod(len(line), self.streams)
        stream = np.arange(self.streams)
        begins = stream * short + np.minimum(stream, longer)
        whole = (begins + np.arange(short)[:, None]).ravel()
        order: Array = line[np.concatenate([whole, begins[:longer] + short])]
        return order


def _texts(follows: Array) -> tuple[Array, Array]:
    starts = np.flatnonzero(~np.append(False, follows[1:]))
    return starts, np.diff(np.append(starts, len(follows)))


def batches_by_length(lengths: Array, batch_tokens: int) -> list[Array]:
    """Batches for evaluation and prediction: longest first, so that memory is allocated once."""
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


def batches_in_turn(lengths: Array, follows: Array, batch_tokens: int) -> list[list[Array]]:
    """Batches for evaluation with carried state: texts side by side, each in its order.

    Args:
        lengths: `[N]` tokens of each example.
        follows: `[N]` bool: whether an example goes on where the example before it ended.
        batch_tokens: the most tokens of a batch, except that it has at least one text.

    Returns:
        groups of texts, those with the most examples first; batch t of a group has example t of
        each text that has one.
    """
    if batch_tokens < 1:
        raise ValueError("batch_tokens must be positive")
    if len(lengths) == 0:
        return []
    starts, sizes = _texts(follows)
    longest_first = np.argsort(-sizes, kind="stable")
    width = max(1, batch_tokens // int(lengths.max()))
    # As many texts side by side as have room even if all their examples are the longest.
    groups = []
    for at in range(0, len(starts), width):
        group = longest_first[at : at + width]
        turns = range(int(sizes[group[0]]))
        groups.append([starts[group][sizes[group] > turn] + turn for turn in turns])
    return groups
