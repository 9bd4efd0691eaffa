"""The base of heads that give one answer for a whole sequence."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.models.backbone import Backbone
from pretune.models.layers import ACTIVATIONS, Dropout, Linear


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


class LastTokenClassifier(PooledHead):
    """A linear map without bias on the last token, which in a causal model has seen all others.

    Where `config.json` has a `pad_token_id`, it is the last one that is not this token, as to
    transformers: with a token that pads and ends texts, models are trained to be read before it.

    Args:
        backbone: a causal one.
        labels: outputs for each sequence.
        dropout: before the linear map; default: none.
    """

    def __init__(self, backbone: Backbone, labels: int, dropout: float | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = Dropout(dropout or 0.0)
        self.classifier = Linear(backbone.config.size("hidden_size"), labels, bias=False)
        backbone.init_weights(self.classifier)

    @override
    def read(self, batch: PackedBatch) -> Tensor:
        pad = getattr(self.backbone.config, "pad_token_id", None)
        select = batch.last if pad is None else batch.last_but(pad)
        last: Tensor = self.backbone(batch, select=select).last_hidden_state
        return last

    @override
    def answer(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


class DenseClassifier(PooledHead):
    """Dropout, dense, activation, dropout and a linear map on the first token.

    Args:
        backbone: loses its pooler, which this head does not read.
        labels: number of outputs.
        dropout: before the last linear map; default: the backbone's own.
        activation: a name in `ACTIVATIONS`.
        first_dropout: before the dense map; default: `dropout`.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: int,
        dropout: float | None = None,
        *,
        activation: str,
        first_dropout: float | None = None,
    ) -> None:
        super().__init__()
        backbone.drop_pooler()
        self.backbone = backbone
        rate = backbone.config.hidden_dropout if dropout is None else dropout
        self.first_dropout = Dropout(rate if first_dropout is None else first_dropout)
        self.dropout = Dropout(rate)
        size = backbone.config.size("hidden_size")
        self.activation = ACTIVATIONS[activation]
        self.dense = Linear(size, size)
        self.classifier = Linear(size, labels)
        backbone.init_weights(self.dense)
        backbone.init_weights(self.classifier)

    @override
    def answer(self, pooled: Tensor) -> Tensor:
        dense = self.activation(self.dense(self.first_dropout(pooled)))
        logits: Tensor = self.classifier(self.dropout(dense))
        return logits


def choosing(kind: Callable[..., PooledHead]) -> Callable[..., PooledHead]:
    """Make a builder of multiple-choice heads, which give each choice one score, from a class."""
    return lambda backbone, labels, dropout=None: kind(backbone, 1, dropout)
