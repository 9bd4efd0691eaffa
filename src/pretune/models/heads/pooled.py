"""The base of heads that give one answer for a whole sequence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.models.backbone import Backbone


class PooledHead(nn.Module):
    """A head that reads one vector for each sequence.

    It works in two steps, so that what a frozen backbone gives can be computed once and kept.
    """

    backbone: Backbone

    def read(self, batch: PackedBatch) -> Tensor:
        """Run the backbone and pick what the head reads, `[B, hidden]`; here the first tokens."""
        first: Tensor = self.backbone(batch, select=batch.first).last_hidden_state
        return first

    def answer(self, pooled: Tensor) -> Tensor:
        """Map `[B, hidden]` to logits `[B, labels]`."""
        raise NotImplementedError

    def forward(self, batch: PackedBatch) -> Tensor:
        """Give logits `[B, labels]`, in the order of the batch's sequences."""
        return self.answer(self.read(batch))


def choosing(kind: Callable[..., PooledHead]) -> Callable[..., PooledHead]:
    """Make a builder of multiple-choice heads, which give each choice one score, from a class."""
    return lambda backbone, labels, dropout=None: kind(backbone, 1, dropout)
