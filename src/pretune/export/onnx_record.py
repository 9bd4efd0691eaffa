"""Records into an ONNX graph what a module of a model computes.

Embeddings and heads differ from family to family. Their own `forward` is run on values that stand
for tensors: each operation of torch that it does becomes a node. A family that brings embeddings
or a head of its own needs no code here, as long as it uses the operations of `_OPERATIONS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, nn

from pretune.errors import CheckpointError
from pretune.export.onnx_graph import GraphWriter
from pretune.models.backbone import Backbone
from pretune.models.layers import ModelOutput


class Recorded:
    """A value of a graph, in place of a tensor."""

    #: What code of ours asks of a tensor before it picks a kernel; there is none for this device.
    device = torch.device("meta")
    is_cpu = False
    requires_grad = False

    def __init__(self, graph: GraphWriter, value: str) -> None:
        self.graph = graph
        self.value = value

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Recorded:
        """Append the node of one of torch's functions."""
        name = getattr(function, "__name__", str(function))
        graph = next(
            part.graph for part in (*args, *(kwargs or {}).values()) if isinstance(part, cls)
        )
        if name not in _OPERATIONS:
            raise CheckpointError(
                f"this model computes '{name}', which cannot be written as ONNX here",
                f"Known: {', '.join(_OPERATIONS)}.",
            )
        return cls(graph, _OPERATIONS[name](graph, *args, **(kwargs or {})))

    def __add__(self, other: Any) -> Recorded:
        return Recorded(self.graph, _binary("Add")(self.graph, self, other))

    def __mul__(self, other: Any) -> Recorded:
        return Recorded(self.graph, _binary("Mul")(self.graph, self, other))

    def float(self) -> Recorded:
        """The value itself: all floats of a graph are float32."""
        return self


def name_in(graph: GraphWriter, value: Any) -> str:
    """The name of an operand in the graph."""
    if isinstance(value, Recorded):
        return value.value
    return graph.weight(value) if isinstance(value, Tensor) else graph.number(float(value))


def _binary(kind: str) -> Callable[..., str]:
    return lambda graph, a, b, **_: graph.add(kind, name_in(graph, a), name_in(graph, b))


def _unary(kind: str) -> Callable[..., str]:
    return lambda graph, x, **_: graph.add(kind, x.value)


def _layer_norm(
    graph: GraphWriter, x: Recorded, shape: Any, *, weight: Tensor, bias: Tensor | None, eps: float
) -> str:
    return graph.layer_norm(x.value, weight, bias, eps)


def _linear(graph: GraphWriter, x: Recorded, weight: Tensor, bias: Tensor | None = None) -> str:
    return graph.linear(x.value, weight, bias)


#: The operations that are known, by the names of torch's functions.
_OPERATIONS: dict[str, Callable[..., str]] = {
    "add": _binary("Add"),
    "mul": _binary("Mul"),
    "embedding": lambda graph, ids, table, **_: graph.embedding(table, ids.value),
    "__getitem__": lambda graph, table, ids: graph.embedding(table, ids.value),
    "linear": _linear,
    "layer_norm": _layer_norm,
    "gelu": lambda graph, x, approximate="none": graph.gelu(x.value, approximate=approximate),
    "silu": lambda graph, x, **_: graph.silu(x.value),
    "relu": _unary("Relu"),
    "tanh": _unary("Tanh"),
}


def record(graph: GraphWriter, function: Callable[[Any], Any], x: str) -> str:
    """Write what a function of one tensor computes."""
    output: Recorded = function(Recorded(graph, x))
    return output.value


class Batch(SimpleNamespace):
    """What embeddings and heads read of a packed batch.

    `first`, `last` and `every` stand for selections of rows; the `StandIn` knows them.
    """

    first, last, every = "first", "last", "every"
    max_seqlen = 1

    def positions_after(self, pad: int) -> Recorded:
        """Positions as `PackedBatch.positions_after` counts them, whatever padding is around."""
        graph, ids = self.tokens.graph, self.tokens.value
        padding = graph.add("Equal", ids, graph.whole(pad))
        real = graph.add("Cast", graph.add("Not", padding), to=TensorProto.INT64)
        counted = graph.add("Mul", graph.add("CumSum", real, graph.whole(1)), real)
        return Recorded(graph, graph.add("Add", counted, graph.whole(pad)))


class StandIn(nn.Module):
    """A backbone that was written already; heads call it as they call the real one.

    Args:
        graph: it was written to.
        backbone: itself; its embeddings may be the output layer of a head.
        hidden: the last hidden states, `[batch, sequence, hidden]`.
        pick: writes the hidden state of each sequence's `first` or `last` token.
        pool: the family's pooler, a function of the first tokens; None: it has none.
    """

    def __init__(
        self,
        graph: GraphWriter,
        backbone: Backbone,
        hidden: str,
        pick: Callable[[str], str],
        pool: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__()
        self.graph, self.hidden, self.pick, self.of_first = graph, hidden, pick, pool
        self.embeddings, self.config = backbone.embeddings, backbone.config
        self._pooled: Recorded | None = None

    def forward(
        self, batch: Batch, *, select: str | Recorded | None = None, **_: Any
    ) -> ModelOutput:
        """Give the hidden states of all tokens, or of one of each sequence.

        Args:
            batch: what heads read.
            select: `first`, `last`, `every`, or the number of a token of each sequence, `[B, 1]`.
        """
        if isinstance(select, Recorded):
            own = self.graph.add("GatherND", self.hidden, select.value, batch_dims=1)
            return ModelOutput(Recorded(self.graph, own))  # type: ignore[arg-type]
        rows = self.hidden if select in (None, batch.every) else self.pick(str(select))
        pooled = self.pooled() if select in (None, batch.first) else None
        return ModelOutput(Recorded(self.graph, rows), pooled)  # type: ignore[arg-type]

    def pooled(self) -> Any:
        """The pooled output of each sequence; None for families without a pooler."""
        if self._pooled is None and self.of_first is not None:
            self._pooled = self.of_first(Recorded(self.graph, self.pick("first")))
        return self._pooled


def with_backbone(head: nn.Module, stand_in: StandIn) -> nn.Module:
    """A copy of a head that reads another backbone; the head itself stays as it is."""
    twin = copy.copy(head)
    twin._modules = {**head._modules, "backbone": stand_in}
    return twin
