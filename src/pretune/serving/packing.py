"""Which features of which requests make up the next batch: by tokens, and fair to all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretune.serving.held_model import PackedWork

#: The share of a batch that is kept for the request that waits longest, so that many short ones do
#: not put off a long one for ever.
OLDEST_SHARE = 0.25


@dataclass
class Share:
    """The features of a request that are in a batch: the next ones, up to `stop`."""

    work: PackedWork
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """How many tokens they have."""
        starts = self.work.features.starts
        return int(starts[self.stop] - starts[self.start])

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def grow(self, tokens: int, rows: int, *, at_least_one: bool = False) -> None:
        """Take further features, as many as have room in a number of tokens and of rows.

        Where the lane runs the features of a record together, whole records are taken.
        """
        features, count = self.work.features, len(self.work.features)
        room = int(features.starts[self.stop]) + tokens
        stop = int(np.searchsorted(features.starts, room, side="right")) - 1
        stop = min(stop, self.stop + rows, count)
        if at_least_one:
            stop = max(stop, min(self.stop + 1, count))
        if self.work.lane.whole_records and self.stop < stop < count:
            inside = features.continues
            # Back to the beginning of a record that has no room; on to its end if it is the first.
            begin = stop
            while begin > self.stop and inside[begin]:
                begin -= 1
            if begin == self.stop and at_least_one:
                while stop < count and inside[stop]:
                    stop += 1
                begin = stop
            stop = begin
        self.stop = max(self.stop, stop)


def next_batch(works: Sequence[PackedWork]) -> list[Share]:
    """Choose the features of the next batch.

    A part is for the oldest request. The rest is for those of which the fewest tokens were run so
    far, so that a short one is in the next batch whatever long ones wait. What is left is for the
    oldest again.

    Args:
        works: of one lane, the oldest first; each has features left.
    """
    lane = works[0].lane
    tokens, rows = lane.batch_tokens, lane.rows or sum(len(work.features) for work in works)
    shares = [Share(work, len(work.items), len(work.items)) for work in works]
    oldest, others = shares[0], shares[1:]
    reserved = int(tokens * OLDEST_SHARE) if others else tokens
    oldest.grow(reserved, max(1, int(rows * OLDEST_SHARE)) if others else rows, at_least_one=True)
    # `sorted` is stable: among equals the older one comes first.
    tokens -= oldest.tokens
    rows -= oldest.rows
    for share in [*sorted(others, key=lambda share: share.work.attained), oldest]:
        if tokens <= 0 or rows <= 0:
            break
        before = share.tokens, share.rows
        share.grow(tokens, rows)
        tokens -= share.tokens - before[0]
        rows -= share.rows - before[1]
    return [share for share in shares if share.stop > share.start]
