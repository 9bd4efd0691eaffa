"""Writes the layers that all Transformers here are made of, for padded batches.

Hidden states are `[batch, sequence, hidden]`; what may not be attended to is a mask of numbers that
are added to the scores: 0, or a very low one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto
from torch import Tensor, nn

from pretune.data.batch import Layout
from pretune.errors import CheckpointError
from pretune.export.onnx_graph import MASKED, GraphWriter
from pretune.export.onnx_record import record
from pretune.models.layers import (
    CrossAttention,
    FeedForward,
    GatedFeedForward,
    RMSNorm,
    SelfAttention,
    TransformerLayer,
)
from pretune.models.rope import Rope
from pretune.models.t5 import RelativePositions


@dataclass(frozen=True)
class KeysValues:
    """The keys and values of an attention, each `[batch, heads, tokens, size]`."""

    keys: str
    values: str


def allowed_mask(graph: GraphWriter, allowed: str) -> str:
    """Turn a bool tensor, True where a query may look, into numbers to add to the scores."""
    return graph.add("Where", allowed, graph.number(0.0), graph.number(MASKED))


def padding_mask(graph: GraphWriter, attention_mask: str) -> str:
    """The mask `[batch, 1, 1, keys]` of `attention_mask`, which is 0 for padding."""
    real = graph.add("Cast", attention_mask, to=TensorProto.BOOL)
    return allowed_mask(graph, graph.unsqueeze(real, 1, 2))


def causal_mask(graph: GraphWriter, queries: str, keys: str, attention_mask: str | None) -> str:
    """The mask of queries that are the last of all keys: each sees itself and those before it.

    Args:
        graph: to write to.
        queries: their number, a vector of length 1.
        keys: the number of all keys.
        attention_mask: `[batch, keys]`, 0 for padding; None: there is none.

    Returns:
        `[1 or batch, 1, queries, keys]`.
    """
    own = graph.add("Add", graph.range_to(queries), graph.add("Sub", keys, queries))
    before = graph.add(
        "LessOrEqual", graph.unsqueeze(graph.range_to(keys), 0), graph.unsqueeze(own, 1)
    )
    before = graph.unsqueeze(before, 0, 1)
    if attention_mask is None:
        return allowed_mask(graph, before)
    real = graph.unsqueeze(graph.add("Cast", attention_mask, to=TensorProto.BOOL), 1, 2)
    return allowed_mask(graph, graph.add("And", before, real))


class Places:
    """Where queries and keys stand: windows of attention, and rotary positions.

    Args:
        graph: to write to.
        positions: of the queries, `[batch or 1, queries]`.
        queries: their number, a vector of length 1.
        keys: the number of all keys; the queries are the last of them.
    """

    def __init__(self, graph: GraphWriter, positions: str, queries: str, keys: str) -> None:
        self._graph, self._positions = graph, positions
        self._queries, self._keys = queries, keys
        self._turns: dict[Rope, tuple[str, str]] = {}
        self._near: dict[int, str] = {}
        self._added: dict[RelativePositions, str] = {}

    def near(self, window: int) -> str:
        """The mask `[1, 1, queries, keys]` of keys at a distance below `window`."""
        if window not in self._near:
            graph = self._graph
            distance = graph.add("Abs", self._distances())
            allowed = graph.add("Less", distance, graph.whole(window))
            self._near[window] = allowed_mask(graph, graph.unsqueeze(allowed, 0, 1))
        return self._near[window]

    def added(self, positions: RelativePositions) -> str:
        """What relative positions add to the scores, `[1, heads, queries, keys]`."""
        if positions not in self._added:
            graph, longest = self._graph, positions.longest
            nearer = graph.add("Min", self._distances(), graph.whole(longest))
            clipped = graph.add("Max", nearer, graph.whole(-longest))
            rows = graph.add("Add", clipped, graph.whole(longest))
            # A row for each distance from -longest to longest.
            table = graph.weight(positions.table.weight[positions.ranges].detach())
            numbers = graph.add("Gather", table, rows, axis=0)
            heads_first = graph.add("Transpose", numbers, perm=[2, 0, 1])
            self._added[positions] = graph.unsqueeze(heads_first, 0)
        return self._added[positions]

    def _distances(self) -> str:
        """The place of each key minus that of each query, `[queries, keys]`."""
        graph = self._graph
        before = graph.add("Sub", self._keys, self._queries)
        own = graph.unsqueeze(graph.add("Add", graph.range_to(self._queries), before), 1)
        return graph.add("Sub", graph.unsqueeze(graph.range_to(self._keys), 0), own)

    def turn(self, rope: Rope, x: str, size: int) -> str:
        """Turn queries or keys `[batch, heads, tokens, size]` by their positions."""
        graph, turned = self._graph, 2 * len(rope.rates)
        cos, sin = self._angles(rope)
        parts = graph.ints(turned // 2, turned // 2, *([size - turned] if size > turned else []))
        first, second, *rest = graph.add_many("Split", 2 + (size > turned), x, parts, axis=-1)
        # The pairs of dimensions are i and i + r/2.
        left = graph.add("Sub", graph.add("Mul", first, cos), graph.add("Mul", second, sin))
        right = graph.add("Add", graph.add("Mul", second, cos), graph.add("Mul", first, sin))
        return graph.add("Concat", left, right, *rest, axis=-1)

    def _angles(self, rope: Rope) -> tuple[str, str]:
        """Cosines and sines, `[batch or 1, 1, queries, r / 2]`; written once for all layers."""
        if rope.grown is not None:
            raise CheckpointError(
                "rotary positions of the kind 'dynamic' depend on the length of a text, which "
                "cannot be written as ONNX here",
                "Use the model in pretune.",
            )
        if rope not in self._turns:
            graph = self._graph
            places = graph.unsqueeze(graph.as_float(self._positions), 1, 3)
            angles = graph.add("Mul", places, graph.weight(rope.rates))
            both = (graph.add(kind, angles) for kind in ("Cos", "Sin"))
            scaling = graph.number(rope.scaling)
            cos, sin = (graph.add("Mul", part, scaling) for part in both)
            self._turns[rope] = cos, sin
        return self._turns[rope]


def _heads(graph: GraphWriter, x: str, size: int, *counts: int) -> list[str]:
    """Split `[batch, tokens, sum(counts) * size]` into `[batch, count, tokens, size]` each."""
    pieces = [x]
    if len(counts) > 1:
        widths = graph.ints(*(count * size for count in counts))
        pieces = graph.add_many("Split", len(counts), x, widths, axis=-1)
    shapes = [graph.ints(0, 0, count, size) for count in counts]
    apart = [graph.add("Reshape", p, shape) for p, shape in zip(pieces, shapes, strict=True)]
    return [graph.add("Transpose", piece, perm=[0, 2, 1, 3]) for piece in apart]


def _shared(graph: GraphWriter, x: str, heads: int, sharing: int, size: int) -> str:
    """Repeat each head of keys or values for the queries that share it."""
    if sharing == 1:
        return x
    ones = graph.ints(1, 1, sharing, 1, 1)
    wide = graph.add("Tile", graph.unsqueeze(x, 2), ones)
    return graph.add("Reshape", wide, graph.ints(0, heads, -1, size))


def _attend(
    graph: GraphWriter, q: str, seen: KeysValues, mask: str, size: int, scale: float | None = None
) -> str:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1): `[batch, tokens, hidden]`."""
    turned = graph.add("Transpose", seen.keys, perm=[0, 1, 3, 2])
    factor = graph.number(1 / math.sqrt(size) if scale is None else scale)
    scores = graph.add("Mul", graph.add("MatMul", q, turned), factor)
    weights = graph.add("Softmax", graph.add("Add", scores, mask), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, seen.values), perm=[0, 2, 1, 3])
    return graph.add("Reshape", mixed, graph.ints(0, 0, -1))


def _self_attention(
    graph: GraphWriter,
    part: SelfAttention,
    x: str,
    mask: str,
    past: KeysValues | None,
    places: Places | None,
) -> tuple[str, KeysValues]:
    """Write self-attention, after keys and values of earlier tokens if there are any.

    Returns:
        the output, and the keys and values of all tokens so far.
    """
    size, heads, shared = part.width // part.num_heads, part.num_heads, part.num_kv_heads
    qkv = graph.linear(x, part.qkv.weight, part.qkv.bias)
    q, keys, values = _heads(graph, qkv, size, heads, shared, shared)
    # Queries and keys are normed, then turned; keys are kept as they are turned.
    q = q if part.query_norm is None else write_norm(graph, part.query_norm, q)
    keys = keys if part.key_norm is None else write_norm(graph, part.key_norm, keys)
    if part.rope is not None:
        assert places is not None  # noqa: S101 - models with such layers give them
        q, keys = (places.turn(part.rope, x, size) for x in (q, keys))
    if past is not None:
        keys = graph.add("Concat", past.keys, keys, axis=2)
        values = graph.add("Concat", past.values, values, axis=2)
    seen = KeysValues(keys, values)
    if part.window is not None:
        assert places is not None  # noqa: S101
        mask = graph.add("Min", mask, places.near(part.window))
    if isinstance(positions := part.pass_bias(Layout.of([1])), RelativePositions):
        assert places is not None  # noqa: S101
        mask = graph.add("Add", mask, places.added(positions))
    whole = (_shared(graph, x, heads, part.sharing, size) for x in (keys, values))
    mixed = _attend(graph, q, KeysValues(*whole), mask, size, part.scale)
    return graph.linear(mixed, part.output.weight, part.output.bias), seen


def source_keys(graph: GraphWriter, part: CrossAttention, source: str) -> KeysValues:
    """Write the keys and values that a decoder's layer reads of the encoder's output."""
    size = _head_size(part.kv, 2 * part.num_heads)
    kv = graph.linear(source, part.kv.weight, part.kv.bias)
    return KeysValues(*_heads(graph, kv, size, part.num_heads, part.num_heads))


def _cross_attention(
    graph: GraphWriter, part: CrossAttention, x: str, source: KeysValues, mask: str
) -> str:
    size = _head_size(part.query, part.num_heads)
    (q,) = _heads(graph, graph.linear(x, part.query.weight, part.query.bias), size, part.num_heads)
    mixed = _attend(graph, q, source, mask, size, part.scale)
    return graph.linear(mixed, part.output.weight, part.output.bias)


def write_layer(
    graph: GraphWriter,
    layer: TransformerLayer,
    x: str,
    mask: str,
    *,
    past: KeysValues | None = None,
    source: KeysValues | None = None,
    source_mask: str = "",
    places: Places | None = None,
) -> tuple[str, KeysValues]:
    """Write a layer as `TransformerLayer.forward` computes it.

    Args:
        graph: to write to.
        layer: with its weights.
        x: hidden states.
        mask: of the self-attention.
        past: keys and values of earlier tokens.
        source: what a layer with cross-attention reads of the source.
        source_mask: of the cross-attention.
        places: of queries and keys, for layers with windows or rotary positions.

    Returns:
        the hidden states, and the keys and values of all tokens so far.
    """
    first = layer.norm_first

    def norm(part: Any, value: str, *, wanted: bool) -> str:
        return write_norm(graph, part, value) if wanted else value

    before = norm(layer.attention_norm, x, wanted=first)
    attended, seen = _self_attention(graph, layer.attention, before, mask, past, places)
    if layer.attention_output_norm is not None:
        attended = write_norm(graph, layer.attention_output_norm, attended)
    x = norm(layer.attention_norm, graph.add("Add", attended, x), wanted=not first)
    # Each target looks at its source.
    if layer.cross is not None and source is not None:
        before = norm(layer.cross_norm, x, wanted=first)
        mixed = _cross_attention(graph, layer.cross, before, source, source_mask)
        x = norm(layer.cross_norm, graph.add("Add", mixed, x), wanted=not first)
    # The feed-forward block, with whatever function lies between its two products.
    before = norm(layer.feed_forward_norm, x, wanted=first)
    down = _feed_forward(graph, layer.feed_forward, before)
    if layer.feed_forward_output_norm is not None:
        down = write_norm(graph, layer.feed_forward_output_norm, down)
    x = norm(layer.feed_forward_norm, graph.add("Add", down, x), wanted=not first)
    return x, seen


def _feed_forward(graph: GraphWriter, block: nn.Module, x: str) -> str:
    """Write a feed-forward block, with a gate or without."""
    if isinstance(block, GatedFeedForward):
        both = graph.linear(x, block.gate_up.weight, block.gate_up.bias)
        width = block.down.in_features
        gate, up = graph.add_many("Split", 2, both, graph.ints(width, width), axis=-1)
        inner = graph.add("Mul", record(graph, block.activation, gate), up)
    else:
        assert isinstance(block, FeedForward)  # noqa: S101 - others are refused before
        up = graph.linear(x, block.up.weight, block.up.bias)
        inner = record(graph, block.activation, up)
    return graph.linear(inner, block.down.weight, block.down.bias)


def can_write(layer: nn.Module) -> bool:
    """Whether `write_layer` knows all parts of a layer."""
    if not isinstance(layer, TransformerLayer):
        return False
    norms = (layer.attention_norm, layer.feed_forward_norm)
    usual = type(layer).forward is TransformerLayer.forward
    return (
        usual
        and type(layer.attention) is SelfAttention
        and isinstance(layer.attention.pass_bias(Layout.of([1])), RelativePositions | None)
        and type(layer.feed_forward) in (FeedForward, GatedFeedForward)
        and all(type(norm) in (nn.LayerNorm, RMSNorm, nn.Identity) for norm in norms)
    )


def write_norm(graph: GraphWriter, norm: nn.Module, x: str) -> str:
    """Write a norm over the last dimension."""
    if isinstance(norm, nn.Identity):
        return x
    if isinstance(norm, RMSNorm):
        weight = norm.weight + norm.offset if norm.offset else norm.weight
        return graph.rms_norm(x, weight, norm.eps)
    assert isinstance(norm, nn.LayerNorm)  # noqa: S101 - others are refused before
    return graph.layer_norm(x, norm.weight, norm.bias, norm.eps)


def _head_size(linear: Any, blocks: int) -> int:
    """The width of a head, by a product that gives so many blocks of that width."""
    weight: Tensor = linear.weight
    return len(weight) // blocks
