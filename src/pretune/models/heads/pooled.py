"""The base of heads that give one answer for a whole sequence."""

from __future__ import annotations

from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.models.backbone import Backbone


class PooledHead(nn.Module):
    """A head that reads one vector for each sequence.

    It works in two steps, so that what a frozen backbone gives can be computed once and kept.
    """

    backbone: Backbone

    def read(self, batch: PackedBatch) -> Tensor:
        """Run the backbone and pick the vector that the head reads, `[B, hidden]`."""
        raise NotImplementedError

    def answer(self, pooled: Tensor) -> Tensor:
        """Map `[B, hidden]` to logits `[B, labels]`."""
        raise NotImplementedError

    def forward(self, batch: PackedBatch) -> Tensor:
        """Give logits `[B, labels]`, in the order of the batch's sequences."""
        return self.answer(self.read(batch))
