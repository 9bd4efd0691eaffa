"""Which examples are shown before a question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretune.data.batch_order import epoch_order


def draw_shots(labels: Sequence[int], count: int, seed: int, *, balanced: bool = True) -> list[int]:
    """Which examples, in the order in which they are shown.

    A function of its arguments alone. With one seed, fewer shots are some of those of more.

    Args:
        labels: of the examples to draw from.
        count: how many; not more than there are.
        seed: of the draw.
        balanced: as many of each label as possible (labels that run out leave their place to the
            others); False: whatever comes.
    """
    order = epoch_order(len(labels), seed, 0).tolist()
    if balanced:
        # The first of each label, in an order of the labels drawn with them, then the second ...
        seen: dict[int, int] = {}
        rank = dict[int, int]()
        for row in order:
            rank[row] = seen.get(labels[row], 0)
            seen[labels[row]] = rank[row] + 1
        order.sort(key=lambda row: rank[row])  # stable: else as drawn
    chosen = np.array(order[:count], dtype=np.int64)
    # In taking turns the labels would have a pattern, which a model may go on with.
    return [int(row) for row in chosen[epoch_order(len(chosen), seed, 1)]]
