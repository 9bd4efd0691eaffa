"""What one update works on, and how it is shared out over processes and parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pretune.data.arrays import Array
from pretune.data.batch import PackedBatch
from pretune.data.batch_order import Cursor


@dataclass(frozen=True)
class Share:
    """One process's share of a batch.

    Attributes:
        whole: `[B]` the features of the whole batch, over all processes.
        parts: the features of each micro-batch here; every process has equally many.
        real: False for a part that only stands in, so that this process takes part in what all
            must do together: it counts for nothing.
    """

    whole: Array
    parts: list[Array]
    real: list[bool]


def share_out(whole: Array, parts: int, rank: int = 0, size: int = 1) -> Share:
    """Deal a batch out like cards; a sum over shares and parts is the sum over the batch.

    Args:
        whole: `[B]` features.
        parts: into how many micro-batches to cut what a process gets, at most.
        rank: which process this is.
        size: of how many.
    """
    most = -(-len(whole) // size)  # what the first process gets
    pieces = np.array_split(whole[rank::size], min(parts, most))
    real = [len(piece) > 0 for piece in pieces]
    return Share(whole, [p if ok else whole[:1] for p, ok in zip(pieces, real, strict=True)], real)


@dataclass
class Job:
    """One update to be made.

    Attributes:
        at: where its data begins.
        share: this process's part of it.
        after: where the next one begins.
        batches: the micro-batches of the share.
        generator: where torch's generator stood before it began.
    """

    at: Cursor
    share: Share
    after: Cursor
    batches: list[PackedBatch]
    generator: Tensor = field(default_factory=lambda: torch.empty(0))
